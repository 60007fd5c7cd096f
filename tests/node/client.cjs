// Speaks the contract as a user of Node would: `node client.cjs ADDRESS PROTO GOOGLEAPIS` prints JSON of what came.
//
// PROTO is the folder with holdfast/v1/holdfast.proto, GOOGLEAPIS the one with google/rpc/status.proto. What lies
// between the two lines with "example" is shown in docs/guides/clients.md.
'use strict';

const [ADDRESS, PROTO, GOOGLEAPIS] = process.argv.slice(2);

// example
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const files = ['holdfast/v1/holdfast.proto', 'google/rpc/error_details.proto'];
const options = { includeDirs: [PROTO, GOOGLEAPIS], keepCase: true, longs: Number, enums: String, defaults: true };
const { holdfast, google } = grpc.loadPackageDefinition(loader.loadSync(files, options));
const client = new holdfast.v1.StreamingInferenceService(ADDRESS, grpc.credentials.createInsecure());
const call = (rpc, request) => new Promise((resolve, reject) => client[rpc](
  request, { deadline: Date.now() + 10_000 }, (error, reply) => (error ? reject(error) : resolve(reply))));
const nonce = () => Math.floor(Math.random() * Number.MAX_SAFE_INTEGER) + 1; // 1 .. 2^53 - 1
const open = (session_id, name) => call('OpenSession', { session_id, model: { name }, nonce: nonce() });
const chunkAfter = ({ session_id, incarnation, position, history_digest }, text) => (
  { session_id, incarnation, position, history_digest, tokens: { text: Buffer.from(text) } });
const detailsOf = (error) => google.rpc.Status.deserialize(error.metadata.get('grpc-status-details-bin')[0]).details;
const reasonOf = (error) => google.rpc.ErrorInfo.deserialize(
  detailsOf(error).find(({ type_url }) => type_url.endsWith('/google.rpc.ErrorInfo')).value).reason;
// example ends

function digestAfter(digest, text) { // as the contract has it, in the numbers of JavaScript
  let [a, b] = [Math.floor(digest / 2 ** 26), digest % 2 ** 26];
  for (const element of Buffer.from(text)) {
    a = (a * 17415474 + element + 1) % 67108859;
    b = (b * 37920051 + element + 1) % 67108837;
  }
  return a * 2 ** 26 + b;
}

function streamed(chunks) {
  return new Promise((resolve, reject) => {
    const replies = [];
    const stream = client.StreamSteps({ deadline: Date.now() + 10_000 });
    stream.on('data', (reply) => replies.push(reply));
    stream.on('error', reject);
    stream.on('end', () => resolve(replies));
    chunks.forEach((chunk) => stream.write({ chunk }));
    stream.end();
  });
}

async function main() {
  const opened = await open('node', 'python-source');
  const chunk = chunkAfter(opened.session, 'import num');
  const first = (await call('Step', { chunk })).result;
  const again = (await call('Step', { chunk })).result;
  const more = [chunkAfter(first, 'py\n')];
  more.push(chunkAfter({ ...first, position: 13, history_digest: digestAfter(first.history_digest, 'py\n') }, 'x'));
  const stream = await streamed(more);
  const other = { ...more[1], history_digest: (first.history_digest % 1000) + 1, position: 14 };
  const failures = {};
  for (const [name, request] of Object.entries({
    gap: { ...chunk, position: 99, history_digest: 0 },
    history: other,
    id: { ...chunk, session_id: 'a\nb' },
    gone: { ...chunk, session_id: 'nobody' },
  })) {
    failures[name] = await call('Step', { chunk: request }).then(() => 'none', reasonOf);
  }
  const digest = digestAfter(opened.session.history_digest, 'import num');
  console.log(JSON.stringify({ opened, first, again, stream, failures, digest }));
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
