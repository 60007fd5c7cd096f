"""A fail-over that loses acknowledged steps under two servers, behind sentinels and in a cluster.

One server has in memory what the new primary never had; the other one brings the session to the same
position by other tokens. The model is `hash`, so a reply computed from the lost state is a wrong number.
"""

import time

import grpc
import numpy as np
import pytest

from holdfast.client.status import from_rpc
from holdfast.errors import ServerUnavailable, StoreUnavailable
from holdfast.history_digest import INITIAL, run_of
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.store.keys import session_key
from tests.faults.test_sentinel import cut_off, let_back, promoted
from tests.support.hash_oracle import hash_of
from tests.support.models import write_hash_model
from tests.support.server import ServerProcess
from tests.support.stores import USER, deploy_cluster, deploy_sentinel
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

KEY = session_key("default", "s")
LEVELS = [pb.ACK_LEVEL_MEMORY, pb.ACK_LEVEL_REPLICATED]


class Server:
    """A server and a stub for it."""

    def __init__(self, folder, models, url):
        flags = ["--store", url, "--models", str(models)]
        flags += ["--replicas-required", "1", "--ack-timeout-s", "0.3", "--store-timeout-s", "1"]
        self.process = ServerProcess(folder, *flags)
        self.channel = grpc.insecure_channel(self.process.address)
        self.stub = StreamingInferenceServiceStub(self.channel)

    def step(self, text, position=None, after=None, **fields):
        """Returns position, history digest and hash after the chunk, or why it was refused."""
        chunk = pb.Chunk(session_id="s", tokens=pb.Tokens(text=text), **fields)
        if position is not None:
            chunk.position = chunk.acknowledged_position = position
            chunk.history_digest = digest_of(after)
        deadline_s = time.monotonic() + 30
        while True:
            try:
                result = self.stub.Step(pb.StepRequest(chunk=chunk), timeout=10).result
            except grpc.RpcError as failure:
                error = from_rpc(failure)
                if not isinstance(error, StoreUnavailable | ServerUnavailable) or position is None:
                    return error.reason
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            else:
                [named] = result.outputs.tensors
                output = int(np.frombuffer(named.tensor.data, "<i8")[-1])
                return result.position, result.history_digest, output

    def close(self):
        self.channel.close()
        self.process.stop()


def digest_of(text):
    return run_of(text).after(INITIAL)


def applied(text):
    return len(text), digest_of(text), hash_of(text)


@pytest.fixture
def start(tmp_path):
    """Starts two servers on a store and opens the session; the first one has it in memory."""
    write_hash_model(tmp_path / "models" / "hash" / "1" / "model.onnx")
    servers = []

    def create(url):
        servers.extend(Server(tmp_path / name, tmp_path / "models", url) for name in ("one", "two"))
        request = pb.OpenSessionRequest(session_id="s", model=pb.ModelRef(name="hash"))
        servers[0].stub.OpenSession(request, timeout=10)
        assert servers[0].step(b"abc", 0, b"") == applied(b"abc")
        return servers

    yield create
    for server in servers:
        server.close()


def lose_under(one, level):
    """Steps through the first server, on a primary whose replicas do not get it any more."""
    outcome = one.step(b"XXX", 3, b"abc", ack_level=level)
    assert outcome == (applied(b"abcXXX") if level == pb.ACK_LEVEL_MEMORY else "ACK_LEVEL_NOT_REACHED")


def check_history(one, two, level):
    """Goes on from what is stored, through the server that remembers the loss as through the other one."""
    assert two.step(b"YYY", 3, b"abc") == applied(b"abcYYY")
    if level == pb.ACK_LEVEL_MEMORY:
        assert one.step(b"ZZZ", 6, b"abcXXX") == "HISTORY_CONFLICT"
    else:  # the client has had no reply and asks again
        assert one.step(b"XXX", 3, b"abc", ack_level=level) == "POSITION_CONFLICT"
    assert two.step(b"ZZZ", 6, b"abcXXX") == "HISTORY_CONFLICT"
    assert one.step(b"ZZZ") == applied(b"abcYYYZZZ")


@pytest.mark.parametrize("kind", ["valkey"])
@pytest.mark.parametrize("level", LEVELS, ids=["memory", "replicated"])
def test_behind_sentinels_a_primary_that_is_cut_off(kind, tmp_path, start, level):
    with deploy_sentinel(kind, tmp_path, down_after_ms=500) as group:
        one, two = start(group.url)
        old = group.nodes[0]
        assert old.call("WAIT", 1, 5000) == 1
        cut_off(old)
        lose_under(one, level)
        new = promoted(group, old)
        wait_for(lambda: new.call("CLIENT", "LIST").count(b"user=" + USER.encode()) >= 2)
        let_back(old, new)
        check_history(one, two, level)


@pytest.mark.parametrize("kind", ["redis"])
@pytest.mark.parametrize("level", LEVELS[:1], ids=["memory"])
def test_in_a_cluster_a_primary_whose_replica_was_stopped(kind, tmp_path, start, level):
    with deploy_cluster(kind, tmp_path, node_timeout_ms=1000, fenced=False, replicas=1) as cluster:
        one, two = start(cluster.url)
        primary = cluster.primary_of(KEY)
        replica = cluster.processes[cluster.processes.index(primary) + 3]
        wait_for(lambda: primary.call("WAIT", 1, 1000) == 1)
        replica.pause()
        primary.call("CLIENT", "KILL", "TYPE", "replica")  # else the steps wait in its socket
        lose_under(one, level)
        primary.kill()
        replica.resume()
        wait_for(lambda: replica.call("ROLE")[0] == b"master", 30)
        check_history(one, two, level)
