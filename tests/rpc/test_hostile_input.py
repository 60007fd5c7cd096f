"""Bytes that are no messages, and messages that are no requests, against a running server.

Every one is answered with a status of the table; the server lives, its memory stays, neighbours go on.
"""

import random
import secrets
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from holdfast.errors import ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL

SERVICE = "/holdfast.v1.StreamingInferenceService"
UNARY = ("OpenSession", "OpenBatch", "GetSession", "DeleteSession", "Step", "StepBatch", "GetModel")
STREAMS = ("StreamSteps", "StreamBatches")
REASONS = {kind.reason: grpc.StatusCode[kind.code] for kind in ServiceError.__subclasses__()}
GROWTH_BYTES = 48 << 20


def raw(channel, method, data, *, timeout=10):
    """Sends bytes as a request of a unary rpc; returns its code and reason, ("OK", "") if it is served."""
    call = channel.unary_unary(f"{SERVICE}/{method}")
    try:
        call(data, timeout=timeout)
    except grpc.RpcError as error:
        return error.code(), reason_of(error)
    return grpc.StatusCode.OK, ""


def reason_of(error):
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()[:200]}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def valid_requests():
    """One request of each kind that the server would serve."""
    model = pb.ModelRef(name=MODEL)
    chunk = pb.Chunk(session_id="fuzzed", model=model, tokens=pb.Tokens(text=b"abc"), position=0)
    batch = pb.Batch(session_ids=["fuzzed-a", "fuzzed-b"], model=model, text=b"ab", tokens_per_row=1)
    return {
        "OpenSession": pb.OpenSessionRequest(session_id="fuzzed", model=model),
        "OpenBatch": pb.OpenBatchRequest(session_ids=["fuzzed-a", "fuzzed-b"], model=model),
        "GetSession": pb.GetSessionRequest(session_id="fuzzed", include_state=True),
        "DeleteSession": pb.DeleteSessionRequest(session_id="fuzzed"),
        "Step": pb.StepRequest(chunk=chunk),
        "StepBatch": pb.StepBatchRequest(batch=batch),
        "GetModel": pb.GetModelRequest(model=model),
        "StreamSteps": pb.StreamStepsRequest(chunk=chunk),
        "StreamBatches": pb.StreamBatchesRequest(batch=batch),
    }


def damage(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            data[place : place + 1] = rng.randbytes(1)
        else:
            data += rng.randbytes(rng.randint(1, 40))
    return bytes(data)


def resident_bytes(server):
    fields = Path(f"/proc/{server.pid}/statm").read_text().split()
    return 4096 * int(fields[1])


def check(code, reason):
    assert code is grpc.StatusCode.OK or code is REASONS[reason], (code, reason)
    assert reason != "INTERNAL"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x80" * 20, bytes(1000)], ids=range(4))
@pytest.mark.parametrize("method", UNARY)
def test_bytes_that_are_no_message_are_an_invalid_request(rpc, method, data):
    assert raw(rpc.channel, method, data) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("method", STREAMS)
def test_bytes_that_are_no_message_end_their_stream_as_an_invalid_request(rpc, method):
    first = valid_requests()[method].SerializeToString()
    call = rpc.channel.stream_stream(f"{SERVICE}/{method}")(iter([first, b"\xff", first]), timeout=10)
    with pytest.raises(grpc.RpcError) as refusal:
        list(call)
    assert (refusal.value.code(), reason_of(refusal.value)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )


def test_an_empty_message_is_answered_by_every_rpc(rpc):
    for method in UNARY:
        check(*raw(rpc.channel, method, b""))


def test_a_deeply_nested_message_is_answered(rpc):
    group = b"\x0b" * 5000  # unknown groups in groups, deeper than any parser follows
    for method in UNARY:
        check(*raw(rpc.channel, method, group))


@pytest.mark.parametrize("size", [9_000, 60_000])
def test_what_was_sent_does_not_come_back_whole_in_an_error(rpc, size):
    """gRPC gives trailing metadata 8 KiB; with more of it the client sees another error."""
    model = pb.ModelRef(name="ä" * (size // 2))
    error = rpc.call("OpenSession", pb.OpenSessionRequest(session_id="nameless", model=model))
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    rpc.open("named")
    assert rpc.step("named", model=model.name, text=b"x").reason == "MODEL_MISMATCH"
    assert rpc.step("x" * size, text=b"x").reason == "INVALID_REQUEST"


@pytest.mark.parametrize("shape", [[1] * 70, [0, 2**62, 4], [2**62, 2**62]], ids=["axes", "empty", "large"])
def test_a_shape_that_no_array_has_is_an_invalid_request(rpc, shape):
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=bytes(4))
    request = pb.OpenSessionRequest(
        session_id="shaped",
        model=pb.ModelRef(name=MODEL),
        initial_state=[pb.NamedTensor(name="h", tensor=tensor)],
    )
    assert rpc.call("OpenSession", request).reason == "INVALID_REQUEST"


def test_a_dtype_that_is_not_known_is_an_invalid_request(rpc):
    tensor = pb.Tensor(dtype=99, shape=[1, 2], data=bytes(8))
    assert (
        rpc.step("typed", model="features", tokens=pb.Tokens(features=tensor)).reason == "INVALID_REQUEST"
    )


def test_two_thousand_damaged_requests_hurt_nobody(rpc):
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    requests = [(name, request.SerializeToString()) for name, request in valid_requests().items()]
    unary = [pair for pair in requests if pair[0] in UNARY]
    rpc.open("fuzzed", "fuzzed-a", "fuzzed-b", "neighbour")
    position, before = 0, 0
    for number in range(2000):
        if number == 500:
            before = resident_bytes(rpc.server)
        method, data = rng.choice(unary)
        check(*raw(rpc.channel, method, rng.randbytes(60) if number % 10 == 0 else damage(data, rng)))
        if number % 100 == 0:
            position += 1
            assert rpc.step("neighbour", position=position - 1, text=b"n").result.position == position
    assert resident_bytes(rpc.server) - before < GROWTH_BYTES


def test_requests_over_the_limit_do_not_grow_the_server(rpc):
    large = pb.StepRequest(chunk=pb.Chunk(session_id="x", tokens=pb.Tokens(text=bytes(512 << 10))))
    data = large.SerializeToString()
    for _ in range(5):
        raw_code(rpc.channel, data)
    before = resident_bytes(rpc.server)
    for _ in range(30):
        assert raw_code(rpc.channel, data) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident_bytes(rpc.server) - before < GROWTH_BYTES


def raw_code(channel, data):
    """gRPC itself refuses what is over the limit, so there are no details."""
    with pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(f"{SERVICE}/Step")(data, timeout=10)
    return refusal.value.code()
