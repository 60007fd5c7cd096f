// A gateway, HTTP in and batches out, to copy and change: `node gateway.cjs ADDRESS PORT PROTO GOOGLEAPIS`.
//
//   PUT  /sessions/ID        {"model": "python-source"}  opens a session, or continues it where it stands
//   POST /sessions/ID/steps  {"text": "import num"}      or "ids": [105, 109], or "features": [[0.5, 1.25]]
//
// A step may select `outputs`, as OutputSelection does. With its `position`, the number of tokens consumed before it,
// it may be repeated after any failure: it is applied once, and the same reply comes again.
'use strict';

const http = require('node:http');
const { json } = require('node:stream/consumers');
const { connect, open, step } = require('./batches.cjs');

const [ADDRESS, PORT, PROTO, GOOGLEAPIS] = process.argv.slice(2);
const MAX_CALLS = 8192; // at once
const MAX_BODY_BYTES = 65_536;
const CALL_MS = 30_000; // longest wait of a caller
const STATUS = { 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 409, 10: 409, 11: 409, 12: 501, 14: 503, 16: 401 };

const check = (isRight, message, code = 3, reason = 'INVALID_REQUEST') => {
  if (!isRight) throw Object.assign(new Error(message), { code, reason });
};
let callCount = 0; // including those whose callers have gone

const server = http.createServer(async (request, response) => {
  const call = { isAnswered: false, position: undefined };
  const answer = (status, body) => {
    if (call.isAnswered) return;
    call.isAnswered = true;
    if (!server.listening) response.setHeader('connection', 'close');
    response.statusCode = status;
    response.setHeader('content-type', 'application/json').end(JSON.stringify(body));
  };
  const timer = setTimeout(() => answer(504, { reason: 'DEADLINE_PASSED', position: call.position, message:
    call.position === undefined ? 'not applied' : 'it may be applied: repeat it with this position' }), CALL_MS);
  callCount += 1;
  try {
    check(callCount <= MAX_CALLS, 'too many calls at once', 14, 'OVERLOADED');
    check(Number(request.headers['content-length']) <= MAX_BODY_BYTES, `content-length is at most ${MAX_BODY_BYTES}`);
    const body = await json(request).then(Object, () => check(false, 'the body is not JSON'));
    answer(200, await serve(request, body, call));
  } catch ({ code, reason, message, expected_position, field }) {
    answer(STATUS[code] ?? 500, { reason, message, field, position: call.position,
      expected_position: expected_position && Number(expected_position) });
  } finally {
    callCount -= 1;
    clearTimeout(timer);
  }
});

async function serve({ method, url }, body, call) {
  const [, name, isStep] = /^\/sessions\/([^/]+)(\/steps)?$/.exec(url) ?? [];
  check(name && method === (isStep ? 'POST' : 'PUT'), 'it is neither PUT /sessions/ID nor POST /sessions/ID/steps');
  const id = decoded(name);
  if (!isStep) {
    const { model, version = 0 } = body;
    check(Number.isInteger(version), 'version is an integer');
    return open(id, model && { name: String(model), version });
  }
  const { position, outputs } = body;
  check(position === undefined || (Number.isSafeInteger(position) && position >= 0), 'position is a number of tokens');
  const what = { tokens: tokensOf(body), outputs: selectionOf(outputs), position };
  const reply = await step(id, what, (at) => {
    check(!call.isAnswered, 'nobody waits for it'); // its time was over before its turn came
    call.position = at;
  });
  return { ...reply, outputs: toJson(reply.outputs) };
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return check(false, 'the id is not UTF-8 with percent-encoding');
  }
}

function tokensOf({ text, ids, features }) {
  const rows = text ?? ids ?? features;
  check((typeof text === 'string' || Array.isArray(rows)) && rows.length, 'tokens are text, ids or features');
  if (rows === text) return { kind: 'text', count: Buffer.byteLength(text), data: Buffer.from(text) };
  const isId = (id) => Number.isInteger(id) && id >= 0 && id < 2 ** 31;
  const isRow = (row) => Array.isArray(row) && row.length === rows[0].length && row.every(Number.isFinite);
  check(rows.every(rows === ids ? isId : isRow), 'ids are integers from 0 on, features lists of numbers of one length');
  if (rows === ids) return { kind: 'ids', count: ids.length, data: ids };
  return { kind: 'features', count: rows.length, data: Buffer.from(Float32Array.from(rows.flat()).buffer) };
}

function selectionOf(outputs) {
  if (outputs === undefined) return undefined;
  const { top_k = 0, token_log_prob = false, tensors = [] } = Object(outputs);
  check(Number.isInteger(top_k) && Array.isArray(tensors), 'top_k is an integer, tensors is a list of names');
  return { top_k, token_log_prob: Boolean(token_log_prob), tensors: tensors.map(String) };
}

const toJson = ({ state, tensors, ...outputs }) => ({ ...outputs, tensors: Object.fromEntries(tensors.map(
  ({ name, tensor: { data, ...tensor } }) => [name, { ...tensor, data: data.toString('base64') }])) });

connect(ADDRESS, [PROTO, GOOGLEAPIS]);
server.keepAliveTimeout = 60_000;
server.listen(Number(PORT), () => console.log(`ready ${server.address().port}`));
process.once('SIGTERM', () => { // answers what has come, and takes nothing new
  server.close(() => process.exit(0));
  setTimeout(process.exit, CALL_MS, 1).unref();
});
