// Steps of concurrent callers, sent together: `connect` once, then `open(id, ...)` and `step(id, ...)`.
//
// Rows that come while a message is under way go together in the next one. Each token is applied once: a row is sent
// again, at its position, until it is known what became of it. ../clients.md explains it; gateway.cjs uses it.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const MAX_ROWS = 250; // of a message: their replies, of 64 KiB at most, fit into one of 16 MiB
const [MAX_TOKENS, MAX_BYTES] = [16_384, 262_144]; // of all its rows
const MAX_STANDINGS = 100_000; // sessions whose positions are known
const OPEN_MS = 30_000; // longest wait for an opening
const SILENCE_MS = 4000; // longest wait for the reply to a message; doubled each time
const FILES = ['holdfast/v1/holdfast.proto', 'google/rpc/error_details.proto'];
const { INTERNAL, UNAVAILABLE, UNKNOWN, CANCELLED, DEADLINE_EXCEEDED } = grpc.status;

let google = null; // messages of google.rpc
let newClient = null; // makes a client with a connection of its own
let client = null;

function connect(address, includeDirs) { // the folders that hold holdfast/ and google/
  const options = { includeDirs, keepCase: true, longs: Number, enums: String, defaults: true };
  const loaded = grpc.loadPackageDefinition(loader.loadSync(FILES, options));
  google = loaded.google;
  newClient = () => new loaded.holdfast.v1.StreamingInferenceService(address, grpc.credentials.createInsecure(), {
    'grpc.service_config': fs.readFileSync(path.join(__dirname, '..', 'service-config.json'), 'utf8'),
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 5000,
    'grpc.max_receive_message_length': 17 << 20, // a reply has at most 16 MiB
    'grpc.use_local_subchannel_pool': 1,
  });
  client = newClient();
}

// -- Failures: errors with code, reason, the metadata of ErrorInfo, and retry_ms if a retry may succeed ---

function failureOf({ code, message, details }) { // of a google.rpc.Status
  const find = (type) => details.find(({ type_url }) => type_url.endsWith(`/google.rpc.${type}`))?.value;
  const [info, retry] = [find('ErrorInfo'), find('RetryInfo')];
  if (!info && [UNKNOWN, CANCELLED, INTERNAL].includes(code)) code = UNAVAILABLE; // a broken connection has many names
  const { reason, metadata } = info ? google.rpc.ErrorInfo.deserialize(info)
    : { reason: code === UNAVAILABLE ? 'SERVER_UNAVAILABLE' : '', metadata: {} };
  const { seconds = 0, nanos = 0 } = (retry && google.rpc.RetryInfo.deserialize(retry).retry_delay) ?? {};
  const mayPass = retry || code === UNAVAILABLE || code === DEADLINE_EXCEEDED;
  const retry_ms = mayPass ? seconds * 1000 + nanos / 1e6 : undefined;
  return Object.assign(new Error(message), { ...metadata, code, reason, retry_ms });
}

function failureOfCall({ code, details, metadata }) {
  const [status] = metadata?.get('grpc-status-details-bin') ?? [];
  return failureOf(status ? google.rpc.Status.deserialize(status) : { code, message: details, details: [] });
}

// -- Messages -------------------------------------------------------------------------------------

const groups = new Map(); // { key, rows that wait, isBusy } by what must be equal in a message
let stream = null; // { call, waiting: messages without a reply, in order, heardMs }
let silences = 0;

function join(row) {
  const group = groups.get(row.key) ?? { key: row.key, rows: [], isBusy: false };
  groups.set(row.key, group);
  group.rows.push(row);
  if (!group.isBusy) sendNext(group);
}

function sendNext(group) {
  group.isBusy = true;
  setImmediate(() => { // whatever has arrived by now has joined
    if (!group.rows.length) return groups.delete(group.key);
    const { count, data } = group.rows[0].tokens;
    const most = Math.max(1, Math.min(MAX_ROWS, MAX_TOKENS / count, MAX_BYTES / data.length));
    return send({ group, rows: group.rows.splice(0, most) });
  });
}

function send(message) {
  stream ??= begin();
  if (!stream.waiting.length) stream.heardMs = Date.now();
  stream.waiting.push(message);
  const [{ model, tokens, outputs }] = message.rows;
  const column = (name) => message.rows.map((row) => row[name]);
  const data = message.rows.map((row) => row.tokens.data);
  stream.call.write({ batch: {
    model, session_ids: column('id'), positions: column('position'), acknowledged_positions: column('acknowledged'),
    incarnations: column('incarnation'), history_digests: column('history_digest'), outputs,
    tokens_per_row: tokens.count, [tokens.kind]: tokens.kind === 'ids' ? { values: data.flat() } : Buffer.concat(data),
  } });
}

function begin() {
  const self = { call: client.StreamBatches(), waiting: [], heardMs: 0 };
  self.call.on('data', (reply) => {
    self.heardMs = Date.now();
    silences = 0;
    settle(self.waiting.shift(), reply);
  });
  self.call.on('error', () => {}); // 'status' follows
  self.call.on('status', (status) => { // all that has no reply goes again, on another stream
    if (stream === self) stream = null;
    const why = failureOfCall(status.code ? status : { code: UNAVAILABLE, details: 'the server ended the stream' });
    for (const { group, rows } of self.waiting.splice(0)) {
      rows.forEach((row) => fail(row, Object.assign(why, { isUnsure: true })));
      sendNext(group);
    }
  });
  return self;
}

setInterval(() => { // a server that hangs, or a connection that is dead
  if (!stream?.waiting.length || Date.now() - stream.heardMs < SILENCE_MS * 2 ** silences) return;
  silences += 1;
  const [dead, { call }] = [client, stream];
  [client, stream] = [newClient(), null];
  call.cancel();
  dead.close();
}, 500).unref();

function settle({ group, rows }, { result, error }) {
  const errors = new Map(result?.errors.map(({ row, status }) => [row, status]));
  const separate = new Map(result?.separate_rows.map((one) => [one.row, one]));
  const replayed = new Set(result?.replayed_rows);
  rows.forEach((row, index) => {
    const status = error?.status ?? errors.get(index); // of the message as a whole, or of a row
    if (status) return fail(row, failureOf(status));
    const { model_version } = separate.get(index) ?? result;
    const outputs = separate.get(index)?.outputs ?? partOf(result.outputs, index, rows.length);
    return row.resolve({ session_id: row.id, position: result.positions[index],
      incarnation: result.incarnations[index], history_digest: result.history_digests[index],
      replayed: replayed.has(index), ack_level: result.ack_level, model_version, outputs });
  });
  sendNext(group);
}

function partOf({ token_count, top_k, top_ids, top_log_probs, token_log_probs, tensors }, index, count) {
  const part = (column) => column.slice(index * column.length / count, (index + 1) * column.length / count);
  return { token_count: token_count / count, top_k, top_ids: part(top_ids), top_log_probs: part(top_log_probs),
    token_log_probs: part(token_log_probs), tensors: tensors.map(({ name, tensor: { dtype, shape, data } }) => (
      { name, tensor: { dtype, shape: [shape[0] / count, ...shape.slice(1)], data: part(data) } })) };
}

function fail(row, why) { // a row is sent again until it is known what became of it
  row.isUnsure ||= Boolean(why.isUnsure) || why.code === UNAVAILABLE || why.code === INTERNAL;
  if (why.retry_ms === undefined) return row.reject(why);
  const boundMs = why.reason === 'DRAINING' && !row.attempts ? 0 : Math.min(1000, 50 * 2 ** row.attempts);
  row.attempts += 1;
  return setTimeout(join, why.retry_ms + Math.random() * boundMs, row);
}

// -- Sessions: one call of each at a time, so that a message has one row of it -------------------------

const standings = new Map(); // { model, incarnation, position, history_digest } by session; those used last are last
const turns = new Map(); // the end of all calls so far, by session

function inTurn(id, work) {
  const done = (turns.get(id) ?? Promise.resolve()).then(work);
  const end = done.catch(() => {}).then(() => turns.get(id) === end && turns.delete(id));
  turns.set(id, end);
  return done;
}

function stand(id, { model, incarnation, position, history_digest }) {
  standings.delete(id);
  standings.set(id, { model, incarnation, position, history_digest });
  if (standings.size > MAX_STANDINGS) standings.delete(standings.keys().next().value);
}

async function takeOver(id, model) { // nothing that was sent before is applied after it
  standings.delete(id);
  const nonce = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER) + 1;
  const [request, options] = [{ session_id: id, model, take_over: true, nonce }, { deadline: Date.now() + OPEN_MS }];
  const { session, resumed } = await new Promise((resolve, reject) => client.OpenSession(request, options,
    (error, reply) => (error ? reject(failureOfCall(error)) : resolve(reply))));
  stand(id, session);
  return { ...session, resumed };
}

async function apply(id, { tokens, outputs, position }, onSend) {
  const { model, incarnation, ...last } = standings.get(id) ?? await takeOver(id);
  position ??= last.position;
  const row = { id, model, tokens, outputs, incarnation, position, acknowledged: Math.min(position, last.position),
    history_digest: position === last.position ? last.history_digest : 0, attempts: 0, isUnsure: false,
    key: JSON.stringify([model, tokens.kind, tokens.count, tokens.data.length, outputs]) };
  onSend(position);
  try {
    const reply = await new Promise((resolve, reject) => join(Object.assign(row, { resolve, reject })));
    stand(id, { model, ...reply });
    return reply;
  } catch (why) {
    // If nobody knows what became of it, the next call takes the session over. But if the session is gone, or is not
    // where it was left, its calls are refused until a caller opens it.
    if (row.isUnsure && !/^(SESSION_|POSITION_|HISTORY_|STORE_REGRESSED)/.test(why.reason)) standings.delete(id);
    throw why;
  }
}

module.exports = {
  connect,
  // Opens a session of a model { name, version }, or continues it where it stands.
  open: (id, model) => inTurn(id, () => takeOver(id, model)),
  // Applies tokens { kind: text, ids or features; count; data: as in a batch }, at the position given or where the
  // session stands. `onSend` gets the position before they are sent, and may throw.
  step: (id, what, onSend) => inTurn(id, () => apply(id, what, onSend)),
};
