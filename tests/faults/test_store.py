"""The store dies, fills with damage, or is written behind the server's back."""

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.backoff import NoBackoff
from redis.retry import Retry

from holdfast.client.status import from_rpc
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.nemesis.store import StoreProcess
from tests.support.opening import open_at
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

MODEL = pb.ModelRef(name="python-source")

pytestmark = pytest.mark.faults


def step(address, session_id, text, position, timeout_s=10):
    chunk = pb.Chunk(session_id=session_id, model=MODEL, tokens=pb.Tokens(text=text), position=position)
    with grpc.insecure_channel(address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        try:
            return stub.Step(pb.StepRequest(chunk=chunk), timeout=timeout_s).result
        except grpc.RpcError as error:
            return from_rpc(error)


def health(address):
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def store_of(data_dir):
    return redis.Redis(unix_socket_path=str(data_dir / "store.sock"), retry=Retry(NoBackoff(), 0))


def test_a_store_that_dies_is_noticed_at_once_and_used_again(tmp_path):
    with (
        StoreProcess(tmp_path / "store") as store,
        ServerProcess(tmp_path / "data", "--store", store.url) as server,
    ):
        open_at(server.address, "s")
        first = step(server.address, "s", b"abc", 0)
        store.sync()  # at level memory, a store on a slow disk may lose its last moments with SIGKILL
        store.kill()
        wait_for(lambda: get(server, "/readyz")[0] == 503, 5)
        wait_for(lambda: health(server.address) == "NOT_SERVING", 1)
        assert get(server, "/livez")[0] == 200
        error = step(server.address, "s", b"d", 3)
        assert (error.code, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert error.retry_after_s > 0
        store.start()
        wait_for(lambda: get(server, "/readyz")[0] == 200, 5)
        wait_for(lambda: health(server.address) == "SERVING", 5)
        again = step(server.address, "s", b"abc", 0)
        assert (again.position, again.replayed, again.outputs) == (3, True, first.outputs)
        assert step(server.address, "s", b"d", 3).position == 4


def test_a_damaged_record_is_refused_and_left_as_found(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server:
        open_at(server.address, "s", "neighbour")
        step(server.address, "s", b"abc", 0)
    with ServerProcess(data) as server, store_of(data) as client:  # a new server: nothing is hot
        [key] = client.keys("holdfast:v1:*:s}")
        record = bytearray(client.get(key))
        record[100] ^= 1
        client.set(key, bytes(record))
        error = step(server.address, "s", b"d", 3)
        assert (error.code, error.reason) == ("DATA_LOSS", "RECORD_CORRUPT")
        assert client.get(key) == bytes(record)
        assert step(server.address, "neighbour", b"d", 0).position == 1


def test_a_store_that_may_evict_is_refused_at_start(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data):
        with store_of(data) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(RuntimeError, match=r"holdfast serve: --store: store unix:.*: eviction policy"):
            ServerProcess(tmp_path / "other", "--store", f"unix://{data / 'store.sock'}")
        assert "maxmemory-policy noeviction" in (tmp_path / "other" / "server.log").read_text()


def test_a_script_flush_is_survived(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, store_of(data) as client:
        open_at(server.address, "s")
        step(server.address, "s", b"a", 0)
        client.script_flush()
        assert step(server.address, "s", b"b", 1).position == 2


def test_sigterm_drains_and_the_last_server_stops_the_store(tmp_path):
    data = tmp_path / "data"
    one, two = ServerProcess(data), ServerProcess(data)
    open_at(one.address, "s")
    step(one.address, "s", b"abc", 0)
    assert one.stop() == 0
    assert step(two.address, "s", b"d", 3).position == 4
    assert two.stop() == 0
    with store_of(data) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with ServerProcess(data) as server:
        assert step(server.address, "s", b"e", 4).position == 5
