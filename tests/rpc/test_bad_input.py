"""Bad input over a real socket: the code and reason of the table, and nothing changed."""

import grpc
import numpy as np
import pytest

from holdfast.client.status import from_rpc, from_status
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL

F32, F64 = pb.DATA_TYPE_FLOAT32, pb.DATA_TYPE_FLOAT64


def ids(*values):
    return pb.Tokens(ids=pb.TokenIds(values=values))


def features(array, *, dtype=F32, shape=None, data=None):
    array = np.asarray(array, np.float32)
    shape = array.shape if shape is None else shape
    return pb.Tokens(features=pb.Tensor(dtype=dtype, shape=shape, data=data or array.tobytes()))


NAN = float("nan")
INVALID = ("INVALID_ARGUMENT", "INVALID_REQUEST")

CASES = {
    "unknown model": ({"model": "nobody", "text": b"x"}, ("FAILED_PRECONDITION", "MODEL_MISMATCH")),
    "id out of vocabulary": ({"tokens": ids(1, 256)}, INVALID),
    "negative id": ({"tokens": ids(-1)}, INVALID),
    "empty chunk": ({"tokens": pb.Tokens(text=b"")}, INVALID),
    "no tokens": ({}, INVALID),
    "text without vocabulary": ({"model": "features", "text": b"x"}, INVALID),
    "features with vocabulary": ({"tokens": features([[1, 2]])}, INVALID),
    "wrong width": ({"model": "features", "tokens": features([[1, 2, 3]])}, INVALID),
    "wrong dtype": ({"model": "features", "tokens": features([[1, 2]], dtype=F64)}, INVALID),
    "NaN": ({"model": "features", "tokens": features([[1, NAN]])}, INVALID),
    "bytes not of the shape": ({"model": "features", "tokens": features([[1, 2]], shape=(2, 2))}, INVALID),
    "negative extent": ({"model": "features", "tokens": features([[1, 2]], shape=(-1, 2))}, INVALID),
    "negative position": ({"position": -1, "text": b"x"}, INVALID),
    "acknowledged ahead": ({"position": 0, "acknowledged_position": 1, "text": b"x"}, INVALID),
    "chunk too large": ({"text": bytes(257)}, INVALID),
    "top_k too large": ({"text": b"x", "outputs": pb.OutputSelection(top_k=257)}, INVALID),
    "unknown output": ({"text": b"x", "outputs": pb.OutputSelection(tensors=["no"])}, INVALID),
    "reply too large": (
        {"text": bytes(100), "outputs": pb.OutputSelection(tensors=["logits"])},
        ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE"),
    ),
    "message over the limit": ({"text": bytes(70_000)}, ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")),
    "level not offered": (
        {"text": b"x", "ack_level": pb.ACK_LEVEL_REPLICATED},
        ("FAILED_PRECONDITION", "ACK_LEVEL_UNSUPPORTED"),
    ),
    "infinite state": (
        {"model": "features", "tokens": features([[3e38, 0], [3e38, 0]])},
        ("INVALID_ARGUMENT", "STATE_NOT_FINITE"),
    ),
}


@pytest.mark.parametrize(("fields", "expected"), CASES.values(), ids=CASES.keys())
def test_a_bad_chunk_is_refused_and_changes_nothing(rpc, fields, expected):
    model = "features" if fields.get("model") == "features" else MODEL
    rpc.open(f"fresh-{model}", model=model)
    error = rpc.step(f"fresh-{model}", **fields)
    assert (error.code, error.reason) == expected
    get = pb.GetSessionRequest(session_id=f"fresh-{model}")
    assert rpc.call("GetSession", get).session.position == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "SESSION_NOT_FOUND"),
        ({"position": 0}, "SESSION_NOT_FOUND"),
        ({"position": 4}, "SESSION_LOST"),
        ({"incarnation": 4}, "SESSION_LOST"),
        ({"model": "nobody"}, "SESSION_NOT_FOUND"),
    ],
    ids=["append", "first", "later", "incarnation", "unknown model"],
)
def test_a_chunk_opens_no_session(rpc, fields, reason):
    error = rpc.step("unopened", text=b"x", **fields)
    assert (error.code, error.reason) == ("NOT_FOUND", reason)
    get = pb.GetSessionRequest(session_id="unopened")
    assert rpc.call("GetSession", get).reason == "SESSION_NOT_FOUND"


@pytest.mark.parametrize("session_id", ["", "x" * 129, "a\nb", "a\x00b", "a\u2028"])
def test_a_bad_session_id_is_refused_by_every_rpc(rpc, session_id):
    assert rpc.step(session_id, text=b"x").reason == "INVALID_REQUEST"
    for name, request in [("GetSession", pb.GetSessionRequest), ("DeleteSession", pb.DeleteSessionRequest)]:
        assert rpc.call(name, request(session_id=session_id)).reason == "INVALID_REQUEST"
    batch = pb.OpenBatchRequest(session_ids=[session_id], model=pb.ModelRef(name=MODEL))
    [refused] = rpc.call("OpenBatch", batch).errors
    assert from_status(refused.status).reason == "INVALID_REQUEST"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"position": 1, "text": b"x"}, ("ABORTED", "POSITION_CONFLICT")),
        ({"position": 0, "text": b"abd"}, ("ABORTED", "POSITION_CONFLICT")),
        ({"position": 4, "text": b"x"}, ("OUT_OF_RANGE", "POSITION_GAP")),
        ({"position": 9, "acknowledged_position": 8, "text": b"x"}, ("DATA_LOSS", "STORE_REGRESSED")),
    ],
    ids=["behind", "other tokens", "ahead", "store behind"],
)
def test_a_chunk_out_of_place_is_refused_with_the_position(rpc, fields, expected):
    rpc.open("placed")
    rpc.step("placed", position=0, text=b"abc")
    error = rpc.step("placed", **fields)
    assert (error.code, error.reason, error.expected_position) == (*expected, 3)
    session = rpc.call("GetSession", pb.GetSessionRequest(session_id="placed")).session
    assert session.position == 3


def test_another_model_or_version_is_refused(rpc):
    rpc.open("owned")
    rpc.step("owned", position=0, text=b"abc")
    assert rpc.step("owned", model="python-source-feedforward", text=b"x").reason == "MODEL_MISMATCH"
    request = pb.GetModelRequest(model=pb.ModelRef(name="python-source", version=9))
    assert rpc.call("GetModel", request).reason == "MODEL_NOT_FOUND"


def test_a_deleted_session_is_remembered_as_deleted(rpc):
    opening = pb.OpenSessionRequest(session_id="ended", model=pb.ModelRef(name=MODEL))
    opened = rpc.call("OpenSession", opening)
    rpc.step("ended", position=0, text=b"abc")
    close = pb.DeleteSessionRequest(session_id="ended", incarnation=opened.session.incarnation)
    assert rpc.call("DeleteSession", close).position == 3
    assert rpc.call("DeleteSession", close).position == 3
    for late in ({"position": 3}, {"position": 0}, {}):
        assert rpc.step("ended", text=b"abc", **late).reason == "SESSION_DELETED"
    assert not rpc.call("OpenSession", opening).resumed
    assert rpc.step("ended", position=0, text=b"x").result.position == 1
    assert rpc.call("DeleteSession", close).reason == "SESSION_DELETED"


def test_must_be_new_refuses_a_taken_id(rpc):
    request = pb.OpenSessionRequest(session_id="taken", model=pb.ModelRef(name=MODEL), must_be_new=True)
    assert not rpc.call("OpenSession", request).resumed
    error = rpc.call("OpenSession", request)
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "SESSION_EXISTS")


def test_an_error_on_a_stream_leaves_the_stream_alive(rpc):
    model = pb.ModelRef(name=MODEL)
    rpc.open("alive")
    tokens = [pb.Tokens(text=b"a"), ids(999), pb.Tokens(text=b"b")]
    positions = [0, 1, 1]
    requests = [
        pb.StreamStepsRequest(
            chunk=pb.Chunk(session_id="alive", model=model, tokens=given, position=position, tag=tag)
        )
        for tag, (given, position) in enumerate(zip(tokens, positions, strict=True))
    ]
    replies = list(rpc.stub.StreamSteps(iter(requests), timeout=10))
    assert [reply.WhichOneof("outcome") for reply in replies] == ["result", "error", "result"]
    assert replies[1].error.tag == 1
    assert replies[2].result.position == 2


def test_an_rpc_that_the_contract_does_not_have_is_unimplemented_and_not_retried(rpc):
    call = rpc.channel.unary_unary("/holdfast.v1.StreamingInferenceService/CloseSession")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=10)
    error = from_rpc(refused.value)
    assert (error.code, error.reason, error.retryable) == ("UNIMPLEMENTED", "", False)
