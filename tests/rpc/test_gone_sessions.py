"""A session that is gone stays gone, on a replica that had it in memory and on one that had not.

Every way a session can be gone meets every way tokens can come that do not prove that they belong to it.
"""

import grpc
import pytest

from holdfast.client.status import from_rpc, from_status
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.store.keys import session_key
from tests.rpc.conftest import MODEL
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

TTL_S = 1.0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store") / "store") as store:
        yield store


@pytest.fixture(scope="module")
def replicas(store, tmp_path_factory):
    """Stubs of two servers; the second one has never seen the sessions of a test."""
    folder = tmp_path_factory.mktemp("replicas")
    flags = ("--store", store.url, "--session-ttl-s", str(TTL_S))
    with ServerProcess(folder / "hot", *flags) as hot, ServerProcess(folder / "cold", *flags) as cold:
        channels = [grpc.insecure_channel(server.address) for server in (hot, cold)]
        yield [StreamingInferenceServiceStub(channel) for channel in channels]
        for channel in channels:
            channel.close()


def chunk(session_id, text=b"a", **fields):
    return pb.Chunk(
        session_id=session_id, model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=text), **fields
    )


def message(session_id, position=None):
    positions = [] if position is None else [position]
    return pb.Batch(model=pb.ModelRef(name=MODEL), session_ids=[session_id], positions=positions, text=b"a")


def step(stub, session_id, position):
    try:
        return stub.Step(pb.StepRequest(chunk=chunk(session_id, position=position)), timeout=10).result
    except grpc.RpcError as error:
        return from_rpc(error)


def stream(stub, session_id, position):
    requests = iter([pb.StreamStepsRequest(chunk=chunk(session_id, position=position))])
    [reply] = stub.StreamSteps(requests, timeout=10)
    return reply.result if reply.WhichOneof("outcome") == "result" else from_status(reply.error.status)


def batch(stub, session_id, position):
    result = stub.StepBatch(pb.StepBatchRequest(batch=message(session_id, position)), timeout=10).result
    return from_status(result.errors[0].status) if result.errors else result


def batches(stub, session_id, position):
    requests = iter([pb.StreamBatchesRequest(batch=message(session_id, position))])
    [reply] = stub.StreamBatches(requests, timeout=10)
    return from_status(reply.result.errors[0].status) if reply.result.errors else reply.result


def close(stub, store, key, session_id):
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), timeout=10)


def delete(stub, store, key, session_id):
    assert store.client.delete(key) == 1


def flush(stub, store, key, session_id):
    store.client.flushall()


def expire(stub, store, key, session_id):
    wait_for(lambda: not store.client.exists(key), 10)


def empty(stub, store, key, session_id):
    store.client.set(key, b"")


WAYS = {
    close: "SESSION_DELETED",
    delete: "SESSION_NOT_FOUND",
    flush: "SESSION_NOT_FOUND",
    empty: "RECORD_CORRUPT",
}


@pytest.mark.parametrize("replica", [0, 1], ids=["hot", "cold"])
@pytest.mark.parametrize("send", [step, stream, batch, batches])
@pytest.mark.parametrize("end", [*WAYS, expire])
def test_tokens_do_not_bring_it_back(replicas, store, end, send, replica):
    session_id = f"{end.__name__}-{send.__name__}-{replica}"
    key = session_key("default", session_id)
    opening = pb.OpenSessionRequest(session_id=session_id, model=pb.ModelRef(name=MODEL))
    replicas[0].OpenSession(opening, timeout=10)
    assert send(replicas[0], session_id, 0)  # what a late duplicate repeats
    assert step(replicas[0], session_id, 1).position == 2
    end(replicas[0], store, key, session_id)
    before = store.client.get(key)
    for position in (None, 0):
        refusal = send(replicas[replica], session_id, position)
        expected = (WAYS[end],) if end in WAYS else ("SESSION_NOT_FOUND", "SESSION_EXPIRED")
        assert refusal.reason in expected
        assert store.client.get(key) == before


@pytest.mark.parametrize("send", [step, stream, batch, batches])
def test_a_session_that_never_was_is_not_begun_by_tokens(replicas, store, send):
    for position in (None, 0):
        assert send(replicas[0], "never-was", position).reason == "SESSION_NOT_FOUND"
    assert not store.client.exists(session_key("default", "never-was"))
