"""What is fuzzed: for each parser of untrusted bytes a function that raises where it breaks its word.

Each takes bytes, so that what once broke one is kept as a file in `corpus/<name>` and tried again in every
run of the tests. `inputs` is where hypothesis gets bytes from: valid ones, damaged ones, and random ones.
"""

import asyncio
import itertools
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import xxhash
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from hypothesis import strategies as st

from holdfast.errors import InvalidRequest, RecordCorrupt, ServiceError, StoreUnavailable
from holdfast.oip.v2 import oip_pb2 as oip
from holdfast.v1 import holdfast_pb2 as pb
from service.engine import rules
from service.engine.checks import check_tokens, validate
from service.engine.imported import check_imported
from service.engine.listing import PagePlace, Wanted
from service.engine.rows import to_tokens
from service.engine.watch_events import (
    Event,
    Lease,
    decode_lease,
    decode_news,
    encode_change,
    encode_event,
    encode_lease,
)
from service.model.config_pbtxt import read_config
from service.model.contract import ContractError, GraphTensor
from service.model.contract_reader import Graph, read_contract
from service.model.contract_text import to_toml
from service.model.onnx_wire import check_file
from service.model.operators import (
    ATTRIBUTE_RANGES,
    MICROSOFT_OPS,
    ONNX_OPS,
    RESERVED_DOMAINS,
)
from service.model.wire_format import UnsafeGraph
from service.rpc import codec
from service.rpc.batches import BatchCall, BatchLimits
from service.rpc.credentials import ANYBODY
from service.rpc.model_message import contract_message
from service.rpc.oip.mapping import read_session_inputs, read_tokens
from service.rpc.oip.replies import selection_of, wanted_outputs
from service.rpc.oip.sequence import read_sequence
from service.rpc.oip.tensors import read_inputs
from service.rpc.openings import given_states, opening_keys, opening_reply, state_of
from service.rpc.page_token import decode_token, encode_token
from service.rpc.stack import Piece, stack_outputs
from service.rpc.status import MAX_MESSAGE_BYTES, to_status
from service.store import beside, blob, flag, record, record_rows
from service.store.connection import _RespProtocol
from service.store.opening import create_store
from service.store.outputs import Outputs, encode_outputs
from service.store.protocol import Found, ScanPlace
from tests.fuzz.bytes import damaged
from tests.fuzz.graphs import drawn_model
from tests.fuzz.stepping import ending_of
from tests.support.fakes import SUM_CONTRACT, AccumulatorModel, FakeModels
from tests.support.hostile_models import (
    external_tensor,
    function_named,
    function_with,
    shadowing,
    step_graph,
    subgraph_with,
)
from tests.support.models import CONTRACT

MAX_TOKENS = 64
MAX_ROWS = 1024
MAX_ERROR_BYTES = 4 * MAX_MESSAGE_BYTES
"""What an error may have as a status, whatever was in the request that it is about."""


@dataclass(frozen=True)
class Harness:
    """One parser under test.

    Attributes:
        run: Raises if the parser does what it must not.
        inputs: Bytes to try it with.
        examples: Of a short run.
        seed: Of a short run; None draws one. Where a find would be another project's, new inputs are for
            `make fuzz`.
    """

    run: Callable[[bytes], None]
    inputs: st.SearchStrategy[bytes]
    examples: int = 200
    seed: int | None = None


class NamedModel:
    """What `validate` asks of a model."""

    name = "m"
    version = 1

    def __init__(self, contract):
        self.contract = contract


FLOATS = ["float32", ["batch", 2]]
GRAPH = [{"x": FLOATS, "h": FLOATS}, {"y": FLOATS, "h_next": FLOATS}, {"s": ["bool", []]}]
"""Inputs, outputs and switches of the model of features, as `run_contract` takes them."""


def graph_tensors(groups):
    return [
        {name: GraphTensor(dtype, tuple(shape)) for name, (dtype, shape) in group.items()}
        for group in groups
    ]


SUM_MODELS = FakeModels(AccumulatorModel())
MODELS = (NamedModel(SUM_CONTRACT), NamedModel(read_contract(CONTRACT, Graph(*graph_tensors(GRAPH)))))


# -- requests ------------------------------------------------------------------------------------


def run_infer_request(data):
    """A request of the Open Inference Protocol becomes tokens that rules can judge, or a ServiceError."""
    request = parsed(oip.ModelInferRequest, data)
    if request is None:
        return
    try:
        sequence = read_sequence(request.model_name, request.parameters)
        assert 1 <= len(sequence.session_id) <= codec.MAX_ID_CHARS
        given, wanted = read_inputs(request), wanted_outputs(request)
    except ServiceError as error:
        check_error(error)
        return
    for model in MODELS:
        try:
            read_session_inputs(given, model.contract, is_start=sequence.is_start)
            tokens = read_tokens(given, model.contract, MAX_TOKENS)
            judge(model, tokens.asked("", 0, selection_of(wanted)), tokens.data, 1)
        except ServiceError as error:
            check_error(error)


def run_chunk(data):
    """A chunk becomes work that its model's rules can judge, or a ServiceError."""
    request = parsed(pb.StepRequest, data)
    if request is None:
        return
    try:
        chunk = codec.to_chunk(request.chunk, lambda *_: None, ANYBODY, max_tokens=MAX_TOKENS)
        assert len(chunk.tokens) <= max(8 * len(data), 8)
        claimed = chunk.position, chunk.acknowledged, chunk.incarnation, chunk.digest
        rules.check(rules.Claim(chunk.asked.token_count, b"", *claimed))
        for model in MODELS:
            judge(model, chunk.asked, chunk.tokens, 1)
    except ServiceError as error:
        check_error(error)


def run_batch(data):
    """A batch becomes rows for the engine, rows with errors, or a ServiceError."""
    request = parsed(pb.StepBatchRequest, data)
    if request is None:
        return
    engine = RowsTaker()
    try:
        call = BatchCall(request.batch, lambda _: None, "tenant", BatchLimits(MODELS, MAX_TOKENS, MAX_ROWS))
        call.submit(engine)
    except ServiceError as error:
        check_error(error)
        return
    numbers = [number for rows in engine.taken for number in rows.numbers.tolist()]
    assert len(numbers) == len(set(numbers))
    for rows in engine.taken:
        rows.settle(InvalidRequest("refused"))
    assert call.is_done
    reply = pb.StepBatchResponse.FromString(call.reply())
    assert len(reply.result.errors) == call.row_count
    for rows in engine.taken:
        for model in MODELS:
            try:
                validate(rows.asked, model)
                check_tokens(rows.asked, rows.tokens, model.contract)
            except ServiceError as error:
                check_error(error)


def run_initial_state(data):
    """A state given by a client becomes the bytes of a record's state, or a ServiceError."""
    request = parsed(pb.OpenSessionRequest, data)
    if request is None:
        return
    try:
        codec.key_of("tenant", request.session_id)
        for model in MODELS:
            arrays = codec.to_arrays(request.initial_state, "initial_state")
            state = codec.to_raw_state(arrays, model.contract, "initial_state")
            assert len(state) in (0, model.contract.state_bytes)
    except ServiceError as error:
        check_error(error)


def run_open_batch(data):
    """Ids of sessions to open become store keys or errors, one for each row, or a ServiceError."""
    request = parsed(pb.OpenBatchRequest, data)
    if request is None:
        return
    try:
        keys = opening_keys(request, "tenant", MAX_ROWS)
    except ServiceError as error:
        check_error(error)
        return
    assert len(keys) == len(request.session_ids)
    reply = opening_reply([key if isinstance(key, ServiceError) else InvalidRequest("no") for key in keys])
    assert [error.row for error in reply.errors] == list(range(len(keys)))
    for key in keys:
        if isinstance(key, ServiceError):
            check_error(key)
    try:
        states = given_states(request)
        for row, model in itertools.product(range(len(keys)), MODELS):
            assert len(state_of(states, row)(model)) in (0, model.contract.state_bytes)
    except ServiceError as error:
        check_error(error)


class RowsTaker:
    """Stands in for the engine."""

    def __init__(self):
        self.taken = []

    def submit_rows(self, rows):
        self.taken.append(rows)


def parsed(message, data):
    try:
        return message.FromString(data)
    except DecodeError:
        return None


def judge(model, asked, raw, rows):
    try:
        validate(asked, model)
    except ServiceError as error:
        check_error(error)
        return
    check_tokens(asked, to_tokens(asked, raw, rows), model.contract)


def check_error(error):
    """An error is a status of bounded size whose text survives the way to a client."""
    status = to_status(error)
    assert status_pb2.Status.FromString(status.SerializeToString()) == status
    assert status.ByteSize() <= MAX_ERROR_BYTES, f"an error of {status.ByteSize()} bytes"


def run_error(data):
    """Any text at all becomes a status."""
    text = data.decode("utf-8", "surrogateescape")  # as Python has names that are not text
    check_error(InvalidRequest(text, field=text[:64]))
    check_error(StoreUnavailable(text, retry_after_s=0.2))


# -- records -------------------------------------------------------------------------------------


def run_record(data):
    """Any bytes are corrupt, or a record that encodes to the same bytes, alone and together with others."""
    for candidate in (data, with_checksum(data)):
        decoded = None
        try:
            decoded = record.decode(candidate)
        except RecordCorrupt as error:
            check_error(error)
        else:
            assert record.encode(decoded) == flag.without_flag(candidate)
        check_together(candidate, decoded)


def check_together(data, alone):
    """Records that are decoded together are the live ones with few replies, and what they are alone."""
    is_usual = alone is not None and not alone.deleted and not alone.quarantine_reason
    is_usual = is_usual and len(alone.replies) < 2
    together = record_rows.decode_rows([data, data])
    assert (together is not None) == is_usual
    if together is None:
        return
    rows, places = together
    assert places.tolist() == [0, 1]
    for stamp, nonce, state, tail in zip(rows.stamps, rows.nonces, rows.states, rows.tails, strict=True):
        incarnation, position, digest = stamp.tolist()
        replies = record.decode_replies(tail.tobytes())
        own = (incarnation, position, rows.fingerprint, state.tobytes(), replies)
        assert record.Record(*own, digest=digest, nonce=int(nonce)) == alone


def with_checksum(data):
    """Returns the bytes with the right magic and checksum, so that what comes after these is tried."""
    if len(data) < record.STAMP_START:
        return data
    count = int.from_bytes(data[4:8], "little")
    checksum = xxhash.xxh3_64_intdigest(data[record.STAMP_START :], count)
    return record.MAGIC + data[4:8] + checksum.to_bytes(8, "little") + data[record.STAMP_START :]


def run_checkpoint(data):
    """Any bytes are corrupt, or a checkpoint whose record is what it would be alone; also in a list."""
    try:
        kept = beside.decode_checkpoint(data)
    except RecordCorrupt as error:
        check_error(error)
    else:
        again = record.encode(kept.record)
        assert flag.without_flag(data[-len(again) :]) == again
    try:
        head = beside.read_head(b"checkpoint:name", len(data), data[:300])
    except RecordCorrupt as error:
        check_error(error)
    else:
        assert 0 <= head.position <= record.MAX_POSITION
        assert (head.name, head.size_bytes) == ("name", len(data))


def run_replies(data):
    """Any bytes are corrupt, or kept replies that encode to the same bytes."""
    try:
        replies = record.decode_replies(data)
    except RecordCorrupt as error:
        check_error(error)
    else:
        assert record.encode_replies(replies) == data


def run_blob(data):
    """Any bytes are refused, or a session that encodes to itself; one that is imported can be replayed."""
    for candidate in (data, with_blob_checksum(data)):
        try:
            exported = blob.decode_blob(candidate)
        except blob.BlobError as error:
            check_error(InvalidRequest(str(error), field="blob"))
            continue
        of_nowhere = exported._replace(record=exported.record._replace(incarnation=1, nonce=0))
        assert blob.decode_blob(blob.encode_blob(exported)) == of_nowhere
        try:
            model = check_imported(exported, SUM_MODELS)
        except ServiceError as error:
            check_error(error)
            continue
        assert len(exported.record.state) == model.contract.state_bytes
        for reply in exported.record.replies:
            outputs = np.frombuffer(reply.outputs, np.uint8)[np.newaxis]
            piece = Piece(np.zeros(1, np.int64), np.zeros((1, 3), np.int64), 1, outputs)
            stack_outputs(1, reply.token_count, [piece])


def run_news(data):
    """Any bytes are no message about watched sessions, or one that encodes to itself."""
    for decode, encode in ((decode_lease, encode_lease), (decode_news, encode_news)):
        try:
            encoded = encode(decode(data))
        except ValueError:
            continue
        assert encode(decode(encoded)) == encoded


def encode_news(news):
    return encode_event(news) if isinstance(news, Event) else encode_change(news.key)


def run_page_token(data):
    """Any text is refused, or leads to a place whose token is that very text."""
    text, wanted = data.decode(errors="replace"), Wanted("acme", "p", "m", 1, 2.0)
    for token in (text, encode_token(PagePlace(ScanPlace(b"l" * 8), text.split("\n")), wanted, b"l" * 8)):
        try:
            place = decode_token(token, wanted, b"l" * 8)
        except ServiceError as error:
            check_error(error)
        else:
            assert encode_token(place, wanted, b"l" * 8) == token


def with_blob_checksum(data):
    """Returns the bytes with the checksums of blob and record right, so that what is behind is tried."""
    head, body = data[: blob.HEADER.size], data[blob.HEADER.size : -8]
    if len(head) == blob.HEADER.size:
        _, _, name_bytes, _, cursor_bytes = blob.HEADER.unpack(head)
        start = name_bytes + cursor_bytes
        body = body[:start] + with_checksum(body[start:])
    return blob.with_checksum(blob.MAGIC + head[4:] + body)


# -- models --------------------------------------------------------------------------------------


def run_contract(data):
    """Any metadata is refused, or a contract that a client can be told and that names nothing twice.

    The bytes are JSON: metadata, then inputs, outputs and switches as {name: [dtype, shape]}.
    """
    try:
        metadata, *tensors = json.loads(data)
        inputs, outputs, switches = graph_tensors(tensors)
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return
    try:
        contract = read_contract(metadata, Graph(inputs, outputs, switches))
    except ContractError:
        return
    assert len(contract_message(contract).SerializeToString()) <= contract.text_bytes + 1024
    for names in (
        [state.name for state in contract.states],
        [contract.input.name, *(state.input for state in contract.states)],
        [state.output for state in contract.states],
        [output.name for output in contract.outputs],
    ):
        assert len(names) == len(set(names)), names


def run_config_pbtxt(data):
    """Any config.pbtxt is refused, or is a contract that can be written down."""
    try:
        document = read_config(data.decode(errors="replace"), lambda name: name.encode()).document
    except ContractError:
        return
    assert list(tomllib.loads(to_toml(document))) == list(document)


def run_onnx_wire(data):
    """Any bytes are refused, or a file in which the package `onnx` finds nothing that must be refused."""
    refusal = None
    try:
        check_file(data)
    except UnsafeGraph as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.isprintable()
        return
    model = parsed(onnx.ModelProto, data)
    if model is None:
        return
    assert not model.training_info
    assert "ort_config" not in [entry.key for entry in model.metadata_props]
    defined = {(function.domain, function.name, function.overload) for function in model.functions}
    for domain, _, _ in defined:
        assert domain, "a function in ONNX's domain"
        assert not any(f"{domain}.".startswith(f"{known.decode()}.") for known in RESERVED_DOMAINS)
    check_sequences(model)
    for message in messages(model):
        if isinstance(message, onnx.TensorProto):
            assert not message.external_data
            assert message.data_location == onnx.TensorProto.DEFAULT
        if isinstance(message, onnx.NodeProto):
            name = message.op_type  # bytes, where they are not text
            listed = MICROSOFT_OPS if message.domain == "com.microsoft" else ONNX_OPS
            is_listed = (name if isinstance(name, bytes) else name.encode()) in listed
            is_known = is_listed and message.domain in ("", "ai.onnx", "com.microsoft")
            assert is_known or (message.domain, name, message.overload) in defined
        if isinstance(message, onnx.AttributeProto) and message.name in ("group", "batch_dims"):
            least, most = ATTRIBUTE_RANGES[message.name.encode()]
            assert least <= message.i <= most
            assert not message.ref_attr_name


def check_sequences(model):
    """What SplitToSequence and SequenceAt are told is in the file, and nothing else reads the sequence."""
    nodes = [message for message in messages(model) if isinstance(message, onnx.NodeProto)]
    of_sequences = [node for node in nodes if node.op_type in ("SplitToSequence", "SequenceAt")]
    told = [(tensor.name, tensor) for tensor in model.graph.initializer]
    told += [(node.output[0], None) for node in nodes if node.output]  # a Constant node's
    for node in of_sequences:
        if node.domain not in ("", "ai.onnx"):
            continue
        assert node in list(model.graph.node)
        [tensor] = [tensor for name, tensor in told if name == node.input[1]]
        if tensor is not None:
            assert onnx.numpy_helper.to_array(tensor).size
        assert node.input[1] not in [value.name for value in model.graph.input]
        if node.op_type == "SplitToSequence":
            readers = [other for other in nodes if node.output[0] in other.input]
            assert {reader.op_type for reader in readers} <= {"SequenceAt"}
            assert node.output[0] not in [value.name for value in model.graph.output]


def run_model_file(data):
    """A file that is let through ends no process: what passes the check takes any token."""
    try:
        check_file(data)
    except UnsafeGraph:
        return
    has_passed, signalled = ending_of(data)
    assert not (has_passed and signalled), f"signal {signalled} after its check"


def messages(message):
    """Yields a message and all messages in it."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += value if field.is_repeated else [value]


# -- the store -----------------------------------------------------------------------------------


HUGE = re.compile(rb"[*~%>|]\+?[0-9]{6,}")
"""Heads of lists for which hiredis takes memory before it has their elements; not a case of ours."""


class Transport:
    """Stands in for the socket of a store."""

    def __init__(self):
        self.is_aborted = False

    def writelines(self, _):
        pass

    def abort(self):
        self.is_aborted = True


def run_resp(data):
    """Whatever a store sends: replies go to requests in order, or every request fails and the socket goes.

    The first byte says into how many pieces the bytes are cut, and so how many requests wait.
    """
    if HUGE.search(data):
        return
    pieces, sent = 1 + (data[0] if data else 0) % 7, data[1:]
    asyncio.run(
        talk([sent[start::pieces] for start in range(pieces)] if pieces == 1 else cut(sent, pieces))
    )


def cut(data, pieces):
    size = max(1, -(-len(data) // pieces))
    return [data[start : start + size] for start in range(0, len(data), size)]


async def talk(pieces):
    lost = []
    protocol = _RespProtocol(5.0, lambda why: StoreUnavailable(why), lambda *_: lost.append(True))
    transport = Transport()
    protocol.connection_made(transport)
    futures = [protocol.send([b"PING"]) for _ in range(4)]
    for piece in pieces:
        if not transport.is_aborted:
            protocol.data_received(piece)
    answered = [future.done() for future in futures]
    assert answered == sorted(answered, reverse=True), "a later request was answered first"
    protocol.connection_lost(None)
    assert lost
    for future in futures:
        if future.exception() is not None:
            assert isinstance(future.exception(), StoreUnavailable)
        else:
            await read_as_every_reply(future.result())


async def read_as_every_reply(reply):
    """Whatever was sent is taken for the reply to each command: a value of its kind, or a ServiceError."""
    store = create_store("redis://nowhere", timeout_s=1)

    def answer(*_):
        future = asyncio.get_running_loop().create_future()
        future.set_result(reply)
        return future

    [connection] = store._topology.nodes

    def answers(requests):
        future = asyncio.get_running_loop().create_future()
        future.set_result([reply] * len(requests))
        return future

    connection.execute = connection.send = answer
    connection.send_many, connection.leave = answers, lambda why: None
    connection._protocol = connection  # as if it were connected
    writes = [type("W", (), {"keys": [b"k"], "expected": bytes(16), "records": [b"r"], "cursors": None})()]
    for ask, is_right in (
        (lambda: store.load([b"k"]), lambda got: len(got) == 1 and isinstance(got[0], bytes | None)),
        (lambda: store.commit(writes, 1), lambda got: set(got) <= {0}),
        (lambda: store.time_to_live_s(b"k"), lambda got: isinstance(got, float) and np.isfinite(got)),
        (lambda: store.scan(b"k*", ScanPlace(b""), 9), lambda got: {bytes}.issuperset(map(type, got[0]))),
        (lambda: store.heads([b"k"], with_idle=True), lambda got: len(got) <= 1),
        (lambda: store.quarantine_reason(b"k", 88), lambda got: isinstance(got, str)),
        (
            lambda: store.load_with_cursors([b"k"]),
            lambda got: len(got) == 1 and isinstance(got[0][1], bytes),
        ),
        (lambda: store.list_checkpoints(b"k"), lambda got: all(head.position >= 0 for head in got)),
        (
            lambda: store.save_checkpoint(b"k", bytes(24), "n", 9),
            lambda got: got is None or isinstance(got, Found) or got.name == "n",
        ),
        (
            lambda: store.load_checkpoint(b"k", "n"),
            lambda got: got is None or isinstance(got.cursor, bytes),
        ),
        (store.ping, lambda _: True),
    ):
        try:
            got = await ask()
        except ServiceError as error:
            check_error(error)
        else:
            assert is_right(got), got


# -- where bytes come from -----------------------------------------------------------------------

TEXT = st.text(max_size=12)
INT64 = st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**63 - 1))
INT32 = st.one_of(st.integers(-1, 300), st.integers(-(2**31), 2**31 - 1))
SHAPES = st.one_of(st.lists(st.integers(-1, 5), max_size=3), st.lists(INT64, max_size=80))
TENSORS = st.builds(
    pb.Tensor,
    dtype=st.integers(0, 9),
    shape=SHAPES,
    data=st.one_of(st.binary(max_size=40), st.just(bytes(8))),
)
TOKENS = st.one_of(
    st.builds(pb.Tokens),
    st.builds(pb.Tokens, text=st.binary(max_size=70)),
    st.builds(pb.Tokens, ids=st.builds(pb.TokenIds, values=st.lists(INT32, max_size=6))),
    st.builds(pb.Tokens, features=TENSORS),
)
MODEL_REFS = st.builds(pb.ModelRef, name=st.one_of(st.just("m"), TEXT), version=st.integers(-1, 2))
SELECTIONS = st.builds(
    pb.OutputSelection,
    top_k=INT32,
    token_log_prob=st.booleans(),
    tensors=st.lists(st.sampled_from(["*", "y", "total", "", "nobody" * 300]), max_size=3),
    state=st.booleans(),
)
IDS = st.one_of(TEXT, st.just("s" * 200), st.just("s\n"))
CHUNKS = st.builds(
    pb.Chunk,
    session_id=IDS,
    model=MODEL_REFS,
    tokens=TOKENS,
    position=INT64,
    acknowledged_position=INT64,
    incarnation=INT64,
    history_digest=INT64,
    outputs=SELECTIONS,
    ack_level=st.integers(0, 5),
)
COLUMN = st.lists(INT64, max_size=4)
BATCHES = st.builds(
    pb.Batch,
    session_ids=st.lists(IDS, max_size=4),
    model=MODEL_REFS,
    tokens_per_row=st.one_of(st.integers(-1, 3), INT32),
    text=st.binary(max_size=8),
    positions=COLUMN,
    acknowledged_positions=COLUMN,
    incarnations=COLUMN,
    history_digests=COLUMN,
    outputs=SELECTIONS,
)
FEATURES = st.builds(lambda batch, data: changed(batch, features=data), BATCHES, st.binary(max_size=32))
NAMED_TENSORS = st.builds(
    pb.NamedTensor, name=st.sampled_from(["sum", "h", "x"]), tensor=st.one_of(TENSORS)
)
OPENINGS = st.builds(
    pb.OpenSessionRequest,
    session_id=IDS,
    model=MODEL_REFS,
    initial_state=st.lists(NAMED_TENSORS, max_size=3),
)
BATCH_OPENINGS = st.builds(
    pb.OpenBatchRequest,
    session_ids=st.lists(IDS, max_size=4),
    model=MODEL_REFS,
    nonce=INT64,
    initial_state=st.lists(NAMED_TENSORS, max_size=3),
)


def changed(message, **fields):
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def serialized(messages):
    return messages.map(lambda message: message.SerializeToString())


REPLIES = st.lists(
    st.builds(record.KeptReply, INT64, st.integers(0, 2**32 - 1), INT64, INT64, st.binary(max_size=9)),
    max_size=3,
).map(tuple)
RAW_RECORDS = st.builds(
    record.Record,
    incarnation=INT64,
    position=st.integers(0, 9),
    fingerprint=st.just(b"f" * 32),
    state=st.binary(max_size=24),
    replies=REPLIES,
    deleted=st.booleans(),
    digest=INT64,
    nonce=INT64,
)
RECORDS = RAW_RECORDS.map(record.encode)
RECORDS |= RECORDS.map(lambda data: data[: flag.FLAG_PLACE] + b"\1" + data[flag.FLAG_PLACE + 1 :])
CHECKPOINTS = st.builds(
    lambda saved_ms, cursor, data: saved_ms + len(cursor).to_bytes(2, "little") + cursor + data,
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=9),
    RECORDS,
)


def served_session(sizes, width, tensors):
    """Returns a session of the model `sum` that keeps a reply to each chunk of so many tokens."""
    replies, position = [], 0
    for size in sizes:
        ids = np.zeros((size, width), np.int32) if width else None
        named = {"total": np.ones(size, np.float32)} if tensors else {}
        state = {"sum": np.ones((1, 2), np.float32)} if tensors else {}
        shown = Outputs(1, size, ids, None if ids is None else ids.view(np.float32), None, named, state)
        outputs = encode_outputs(shown)[0].tobytes()
        replies.append(record.KeptReply(position + size, size, position + 1, position + size + 1, outputs))
        position += size
    state = np.array([position, position], np.float32).tobytes()
    return record.Record(
        1, position, AccumulatorModel.fingerprint, state, tuple(replies), digest=position + 1
    )


SERVED = st.builds(
    served_session, st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.booleans()
)
BLOBS = st.builds(
    blob.Exported, TEXT, st.integers(0, 9), st.one_of(SERVED, RAW_RECORDS), st.binary(max_size=260)
).map(blob.encode_blob)
TOKENS_OF_PAGES = st.builds(
    lambda node, cursor, ids: encode_token(
        PagePlace(ScanPlace(b"l" * 8, node, cursor), ids), Wanted("acme", "p", "m", 1, 2.0), b"l" * 8
    ).encode(),
    st.integers(0, 2**15 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(TEXT, max_size=3),
)

LEAVES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2, 300, 2**31, 2**70, 1.5, 1e999, float("nan"), "", "\ud800", "\n"]
    ),
    st.sampled_from(
        ["h", "x", "y", "s", "h_next", "float32", "bool", "raw", "logits", "bytes", "token_id"]
    ),
)
JSON = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=3),
    st.dictionaries(st.sampled_from(["name", "kind", "size", "shape"]), LEAVES, max_size=2),
    st.lists(st.lists(LEAVES, max_size=2), max_size=2),
)
PARSED = {key.removeprefix("holdfast."): json.loads(value) for key, value in CONTRACT.items()}
PLACES = [
    (topic, key)
    for topic, entry in PARSED.items()
    if topic != "contract_version"
    for key in [None, *(entry[0] if isinstance(entry, list) else entry)]
] + [("outputs", "switch"), ("vocabulary", None), ("apart", None), ("input", "time_axis")]


def changed_contract(changes, repeated):
    """Returns bytes for `run_contract`: the contract of the features model, changed in places."""
    topics = json.loads(json.dumps(PARSED))
    for (topic, key), value in changes:
        if key is None or topic not in topics:
            topics[topic] = value
            continue
        entry = topics[topic]
        target = entry[0] if isinstance(entry, list) and entry else entry
        if isinstance(target, dict):
            target[key] = value
    for topic in repeated:
        if isinstance(topics[topic], list):
            topics[topic] = topics[topic] * 2
    metadata = {f"holdfast.{topic}": json.dumps(entry) for topic, entry in topics.items()}
    metadata["holdfast.contract_version"] = "1"
    return json.dumps([metadata, *GRAPH]).encode()


CONTRACTS = st.builds(
    changed_contract,
    st.lists(st.tuples(st.sampled_from(PLACES), JSON), max_size=2),
    st.lists(st.sampled_from(["states", "outputs"]), max_size=1),
)
ANY_METADATA = st.dictionaries(
    st.sampled_from(["holdfast.contract_version", *CONTRACT]),
    st.one_of(st.text(max_size=20), JSON),
    max_size=5,
).map(lambda metadata: json.dumps([{"holdfast.contract_version": "1", **metadata}, *GRAPH]).encode())

CALL = onnx.helper.make_node("weights", [], ["w"], domain="mine")
OUTSIDE = external_tensor("w.bin")
PIECES = ("SplitToSequence", ["x", "extents"], ["pieces"]), ("SequenceAt", ["pieces", "place"], ["piece"])
TOLD = [
    onnx.numpy_helper.from_array(np.array(value), name)
    for name, value in (("extents", [1, 1]), ("place", 1))
]
GRAPHS = st.sampled_from(
    [
        model.SerializeToString()
        for model in (
            step_graph(),
            step_graph(initializers=[OUTSIDE]),
            step_graph(subgraph_with(OUTSIDE)),
            step_graph(CALL, functions=[function_with(OUTSIDE)]),
            step_graph(CALL, metadata={}),
            step_graph(
                CALL, functions=[function_named("mine", "weights", onnx.helper.make_node("DFT", [], []))]
            ),
            step_graph(onnx.helper.make_node("Conv", ["x", "x"], ["w"], group=0)),
            step_graph(*PIECES, initializers=[*TOLD]),
            step_graph(
                *PIECES,
                onnx.helper.make_node("Constant", [], ["place"], value=TOLD[1]),
                initializers=TOLD[:1],
            ),
            shadowing(),
        )
    ]
)

CONFIGS = st.lists(
    st.sampled_from(
        [
            "max_batch_size: 8",
            "input [",
            'input { name: "x" dims: [ 4, -1 ] }',
            'output { name: "y" dims: 0x2 label_filename: "l" }',
            "sequence_batching {",
            'state { input_name: "h" output_name: "n" dims: [ 2 ]',
            'initial_state < data_type: TYPE_INT8 dims: 15 data_file: "h" >',
            "control_input [ { } ]",
            "reshape: { shape: [] }",
            "}",
            "],",
            "# c\n",
            "'\\x41\\0' 1e400 -inf",
        ]
    ),
    max_size=12,
).map(lambda parts: " ".join(parts).encode())

PARAMETERS = st.dictionaries(
    st.sampled_from(["sequence_id", "sequence_start", "sequence_end", "holdfast_position", "timeout", "x"]),
    st.one_of(
        st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(oip.InferParameter, string_param=TEXT),
        st.builds(oip.InferParameter, bool_param=st.booleans()),
        st.builds(oip.InferParameter, double_param=st.floats()),
    ),
    max_size=4,
)
INFER_INPUTS = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["token", "x", "h", ""]),
    datatype=st.sampled_from(["INT64", "INT32", "UINT8", "FP32", "FP16", "BYTES", "BOOL", "BF16", ""]),
    shape=st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=4),
    contents=st.builds(
        oip.InferTensorContents,
        int64_contents=st.lists(st.integers(-3, 300), max_size=4),
        uint_contents=st.lists(st.integers(0, 300), max_size=2),
        fp32_contents=st.lists(st.floats(width=32), max_size=4),
        bytes_contents=st.lists(st.binary(max_size=4), max_size=2),
    ),
)
INFER_REQUESTS = st.builds(
    oip.ModelInferRequest,
    model_name=st.sampled_from(["m", "sum", ""]),
    parameters=PARAMETERS,
    inputs=st.lists(INFER_INPUTS, max_size=3),
    outputs=st.lists(
        st.builds(
            oip.ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(["total", "y", "*"])
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(
        st.one_of(st.binary(max_size=24), st.sampled_from([bytes(8), b"\3\0\0\0abc", bytes(16)])),
        max_size=3,
    ),
)

DRAWN = st.integers(0, 2**48).map(drawn_model)

RESP = st.one_of(
    st.sampled_from(
        [b"*0\r\n", b"*1\r\n", b"*3\r\n", b"~2\r\n", b"%1\r\n", b">1\r\n", b"|1\r\n", b"*-1\r\n"]
    ),
    st.sampled_from(
        [b"+OK\r\n", b"-OOM no\r\n", b"-ERR \xff\r\n", b"$-1\r\n", b"_\r\n", b":1\r\n", b":-7\r\n"]
    ),
    st.sampled_from(
        [b",nan\r\n", b",inf\r\n", b"#t\r\n", b"#f\r\n", b"$5\r\nerror\r\n", b"$0\r\n\r\n", b"$9\r\n"]
    ),
    st.binary(max_size=8),
)
TALK = st.builds(
    lambda first, replies: bytes([first]) + b"".join(replies), st.integers(0, 6), st.lists(RESP, max_size=9)
)


NEWS = st.builds(
    lambda key, position, text, state: encode_event(
        Event(key, 7, position, 9, 1, "text", len(text), 1, text, b"out", state, False, 1.5, "host:1")
    ),
    st.binary(max_size=20),
    st.integers(0, 2**53 - 1),
    st.binary(max_size=9),
    st.none() | st.binary(max_size=9),
) | st.builds(
    lambda keys: encode_lease(Lease(b"channel", 6.0, keys)),
    st.dictionaries(st.binary(max_size=20), st.booleans(), max_size=3),
)


def mostly(valid, size=200):
    """Valid bytes, damaged ones, and now and then random ones."""
    return st.one_of(damaged(valid), damaged(valid), st.binary(max_size=size))


HARNESSES = {
    "chunk": Harness(run_chunk, mostly(serialized(st.builds(pb.StepRequest, chunk=CHUNKS)))),
    "batch": Harness(
        run_batch,
        mostly(serialized(st.builds(pb.StepBatchRequest, batch=st.one_of(BATCHES, FEATURES)))),
    ),
    "infer_request": Harness(run_infer_request, mostly(serialized(INFER_REQUESTS))),
    "initial_state": Harness(run_initial_state, mostly(serialized(OPENINGS))),
    "open_batch": Harness(run_open_batch, mostly(serialized(BATCH_OPENINGS))),
    "error": Harness(run_error, st.one_of(st.binary(max_size=200), TEXT.map(str.encode))),
    "record": Harness(run_record, mostly(RECORDS)),
    "checkpoint": Harness(run_checkpoint, mostly(CHECKPOINTS)),
    "blob": Harness(run_blob, mostly(BLOBS)),
    "news": Harness(run_news, mostly(NEWS)),
    "page_token": Harness(run_page_token, mostly(TOKENS_OF_PAGES)),
    "replies": Harness(run_replies, mostly(REPLIES.map(record.encode_replies))),
    "contract": Harness(run_contract, st.one_of(CONTRACTS, CONTRACTS, ANY_METADATA)),
    "config_pbtxt": Harness(run_config_pbtxt, mostly(CONFIGS)),
    "onnx_wire": Harness(run_onnx_wire, mostly(GRAPHS, 600)),
    "model_file": Harness(run_model_file, st.one_of(DRAWN, DRAWN, damaged(DRAWN)), examples=40, seed=1),
    "resp": Harness(run_resp, mostly(TALK)),
}
