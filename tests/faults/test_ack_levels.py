"""Acknowledgement levels with real stores: disks that do not sync, replicas that are paused."""

import asyncio
from concurrent import futures

import numpy as np
import pytest

import holdfast
from holdfast.errors import AckLevelUnsupported, HoldfastError
from holdfast.v1 import holdfast_pb2 as pb
from service.store.confirmation import AckSettings
from service.store.opening import create_store
from service.store.protocol import AckLevel
from tests.faults.test_store import store_of
from tests.rpc.conftest import Rpc
from tests.support.opening import open_at
from tests.support.oracle import run
from tests.support.server import ServerProcess, get
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

MODEL = "python-source"
TEXT = b"def f(x):\n    return x + 1\n"
REDIS_7_0 = "/usr/bin/redis-server"
VOLATILE = ["--allow-volatile-store"]
REPLICAS = ["--replicas-required", "1"]

pytestmark = pytest.mark.faults


def counted(server, level):
    """Returns how many chunks were answered at a level."""
    name = f'holdfast_acknowledged_chunks_total{{level="{level}"}} '
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def step_once(server, session_id, text, position, level=pb.ACK_LEVEL_UNSPECIFIED):
    """Sends one chunk, once; returns the reply or the error."""
    rpc = Rpc(server)
    acknowledged = {"acknowledged_position": position, "ack_level": level}
    try:
        return rpc.step(session_id, text=text, position=position, **acknowledged)
    finally:
        rpc.channel.close()


@pytest.fixture(scope="module")
def primary(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("primary"), appendfsync="always") as store:
        yield store


@pytest.fixture(scope="module")
def replica(tmp_path_factory, primary):
    with StoreProcess(tmp_path_factory.mktemp("replica")) as store:
        store.follow(primary)
        yield store


@pytest.fixture(autouse=True)
def _go_on(request):
    """Lets a replica that a test has paused go on, whatever became of the test."""
    yield
    if "replica" in request.fixturenames:
        request.getfixturevalue("replica").resume()


@pytest.fixture(scope="module")
def server(tmp_path_factory, primary, replica):
    flags = ["--store", primary.url, "--ack-level", "replicated", "--replicas-required", "1"]
    with ServerProcess(tmp_path_factory.mktemp("data"), *flags, "--ack-timeout-s", "1") as server:
        yield server


def test_an_embedded_store_syncs_every_batch_where_the_server_promises_it(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as joined, store_of(data) as store:
        assert store.config_get("appendfsync") == {"appendfsync": "everysec"}
        with ServerProcess(data, "--ack-level", "fsynced") as server:
            assert store.config_get("appendfsync") == {"appendfsync": "always"}
            with holdfast.Client(server.address) as client:
                reply = client.open_session("s", model=MODEL).step(TEXT)
                open_at(server.address, "a", "b")
                batch = client.step_batch(MODEL, ["a", "b"], b"xy", [0, 0])
            assert (reply.ack_level, batch.ack_level, batch.errors) == ("fsynced", "fsynced", {})
            assert (counted(server, "fsynced"), counted(server, "memory")) == (3, 0)
        with holdfast.Client(joined.address) as client:
            assert client.open_session("s").step("x").ack_level == "memory"


async def test_every_way_in_gives_the_level_asked_for(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data, "--ack-level", "fsynced"), ServerProcess(data) as server:
        async with holdfast.AsyncClient(server.address, ack_level="fsynced") as client:
            session = await client.open_session("s", model=MODEL)
            levels = [(await session.step("a")).ack_level, (await session.step("b")).ack_level]
            levels += [reply.ack_level async for reply in session.stream("cdef")]
            open_at(server.address, "x", "y")
            levels.append((await client.step_batch(MODEL, ["x", "y"], b"ab")).ack_level)
            async with client.batches(MODEL) as batches:
                levels.append((await (await batches.submit(["x", "y"], b"cd", [1, 1]))).ack_level)
            assert levels == ["fsynced"] * 8
            levels = [(await session.step("g", ack_level="memory")).ack_level]
            levels += [reply.ack_level async for reply in session.stream("hi", ack_level="memory")]
            levels.append((await client.step_batch(MODEL, ["x"], b"e", ack_level="memory")).ack_level)
            assert levels == ["memory"] * 4


def test_a_file_that_is_not_synced_acknowledges_nothing_and_loses_nothing(tmp_path):
    with StoreProcess(tmp_path / "store", appendfsync="always") as store:
        flags = ["--store", store.url, "--ack-timeout-s", "0.5"]
        with ServerProcess(tmp_path / "data", *flags) as server, holdfast.Client(server.address) as client:
            session = client.open_session("s", model=MODEL)
            session.step(TEXT[:5], ack_level="fsynced")
            for policy in ("no", "everysec"):  # with the latter it is synced within a second, or two
                store.client.config_set("appendfsync", policy)
                error = step_once(server, "s", TEXT[5:9], 5, pb.ACK_LEVEL_FSYNCED)
                assert (error.reason, error.code) == ("ACK_LEVEL_NOT_REACHED", "UNAVAILABLE")
                assert error.retry_after_s > 0
            store.client.config_set("appendfsync", "always")
            again = session.step(TEXT[5:9], ack_level="fsynced")
            assert (again.position, again.ack_level, again.replayed) == (9, "fsynced", True)
            reply = session.step(TEXT[9:], ack_level="fsynced", token_log_prob=True)
            np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][9:], atol=1e-5)


def test_what_is_acknowledged_as_synced_survives_the_death_of_the_store(tmp_path):
    with StoreProcess(tmp_path / "store", appendfsync="always") as store:
        flags = ["--store", store.url, "--ack-level", "fsynced"]
        with ServerProcess(tmp_path / "data", *flags) as server, holdfast.Client(server.address) as client:
            sessions = [client.open_session(f"s{number}", model=MODEL) for number in range(5)]
            for session in sessions:
                session.step(TEXT[:9])
            store.kill()
            store.start()
            for session in sessions:
                reply = session.step(TEXT[9:], token_log_prob=True)
                np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][9:], atol=1e-5)
            assert 'reason="STORE_REGRESSED"} 0.0' in get(server, "/metrics")[1]


def test_a_replica_that_is_paused_acknowledges_nothing_and_loses_nothing(server, replica):
    with holdfast.Client(server.address, timeout_s=20) as client:
        session, other = (
            client.open_session("paused", model=MODEL),
            client.open_session("other", model=MODEL),
        )
        assert session.step(TEXT[:5]).ack_level == "replicated"
        replica.pause()
        with futures.ThreadPoolExecutor() as threads:
            waiting = threads.submit(step_once, server, "paused", TEXT[5:9], 5)
            for position in range(50):  # the chunk that waits for a second holds up nobody
                assert other.step("x", ack_level="memory").position == position + 1
            assert "sent again, it is a replay" in str(waiting.result())
        replica.resume()
        again = session.step(TEXT[5:9])
        assert (again.position, again.ack_level, again.replayed) == (9, "replicated", True)
        reply = session.step(TEXT[9:], token_log_prob=True)
        np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][9:], atol=1e-5)
        assert (reply.position, reply.ack_level) == (len(TEXT), "replicated")


def test_a_chunk_sent_again_is_a_replay_that_is_confirmed_too(server, replica):
    with holdfast.Client(server.address) as client:
        open_at(server.address, "again")
        before = counted(server, "replicated")
        replica.pause()
        for _ in range(2):
            batch = client.step_batch(MODEL, ["again"], TEXT, [0])
            assert [error.reason for error in batch.errors.values()] == ["ACK_LEVEL_NOT_REACHED"]
        assert counted(server, "replicated") == before
        replica.resume()
        batch = client.step_batch(MODEL, ["again"], TEXT, [0])
        assert (batch.replayed_rows, batch.ack_level) == ([0], "replicated")
        assert counted(server, "replicated") == before + 1


def test_a_server_killed_while_it_waits_is_replaced_and_the_retry_is_confirmed(
    tmp_path, primary, replica, server
):
    open_at(server.address, "doomed")
    opened = primary.client.get("holdfast:v1:{default:doomed}")
    flags = ["--store", primary.url, "--replicas-required", "1"]
    with ServerProcess(tmp_path / "data", *flags) as doomed, futures.ThreadPoolExecutor() as threads:
        replica.pause()
        waiting = threads.submit(step_once, doomed, "doomed", TEXT, 0, pb.ACK_LEVEL_REPLICATED)
        wait_for(lambda: primary.client.get("holdfast:v1:{default:doomed}") != opened, 20)
        doomed.kill()
        assert waiting.result().reason == "SERVER_UNAVAILABLE"
        assert step_once(server, "doomed", TEXT, 0).reason == "ACK_LEVEL_NOT_REACHED"
        replica.resume()
        result = step_once(server, "doomed", TEXT, 0).result
        assert (result.replayed, result.ack_level) == (True, pb.ACK_LEVEL_REPLICATED)


def test_opening_and_closing_wait_for_the_level_of_the_server(server, replica):
    rpc, model = Rpc(server), pb.ModelRef(name=MODEL)
    requests = [
        ("OpenSession", pb.OpenSessionRequest(session_id="opened", model=model)),
        ("OpenSession", pb.OpenSessionRequest(session_id="opened", take_over=True)),
        ("DeleteSession", pb.DeleteSessionRequest(session_id="opened")),
    ]
    for name, request in requests:
        replica.pause()
        assert rpc.call(name, request).reason == "ACK_LEVEL_NOT_REACHED"
        replica.resume()
        assert not isinstance(rpc.call(name, request), HoldfastError)
    rpc.channel.close()


def test_one_wait_serves_a_batch(server, primary):
    with holdfast.Client(server.address) as client:
        ids = [f"wait-{number}" for number in range(256)]
        open_at(server.address, *ids)
        before = primary.calls("wait")
        batch = client.step_batch(MODEL, ids, bytes(256))
        assert (batch.errors, batch.ack_level) == ({}, "replicated")
        assert primary.calls("wait") - before <= 2


def test_both_levels_at_once(tmp_path, primary, replica):
    flags = ["--store", primary.url, "--ack-level", "fsynced+replicated", "--replicas-required", "1"]
    with ServerProcess(tmp_path / "data", *flags) as server, holdfast.Client(server.address) as client:
        before = primary.calls("wait"), primary.calls("waitaof")
        assert client.open_session("both", model=MODEL).step("a").ack_level == "fsynced+replicated"
        assert primary.calls("wait") > before[0]
        assert primary.calls("waitaof") > before[1]


def test_a_level_per_request_that_the_store_cannot_give_is_refused(tmp_path):
    with ServerProcess(tmp_path / "data") as server, holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        with pytest.raises(AckLevelUnsupported, match="its appendfsync is everysec"):
            session.step("a", ack_level="fsynced")
        with pytest.raises(AckLevelUnsupported, match="--replicas-required") as caught:
            session.step("a", ack_level="replicated")
        assert (caught.value.code, caught.value.retryable) == ("FAILED_PRECONDITION", False)
        batch = client.step_batch(MODEL, ["s"], b"a", [0], ack_level="fsynced+replicated")
        assert [error.reason for error in batch.errors.values()] == ["ACK_LEVEL_UNSUPPORTED"]
        assert session.step("a").position == 1


@pytest.mark.parametrize(
    ("level", "flags", "options", "reason"),
    [
        ("fsynced", [], {"binary": REDIS_7_0}, "redis 7.0.15, whose WAITAOF needs 7.4.3 or newer"),
        ("fsynced", [], {"appendfsync": "everysec"}, "its appendfsync is everysec"),
        ("fsynced", VOLATILE, {"appendonly": "no", "appendfsync": "always"}, "set appendonly yes"),
        ("replicated", [], {}, "needs --replicas-required N"),
        ("replicated", REPLICAS, {}, "needs 1 connected replicas .* 0 are connected"),
        ("fsynced+replicated", REPLICAS, {"appendfsync": "always"}, "0 are connected"),
    ],
)
def test_a_level_that_the_store_cannot_give_is_refused_at_start(tmp_path, level, flags, options, reason):
    with (
        StoreProcess(tmp_path / "store", **options) as store,
        pytest.raises(RuntimeError, match=f"holdfast serve: --ack-level .*: level .*{reason}"),
    ):
        ServerProcess(tmp_path / "data", "--store", store.url, "--ack-level", level, *flags).stop()


async def test_a_primary_that_was_no_primary_for_a_while_does_not_confirm_what_came_before(
    primary, replica
):
    acks = AckSettings(replicas_required=1, timeout_s=2)
    store = create_store(primary.url, timeout_s=2, acks=acks)
    await store.open()
    try:
        epoch = store.epoch
        assert await store.confirm([b"k"], AckLevel.REPLICATED, epoch) == {}
        # clients stay connected through this, and a record acknowledged before is gone after it
        replica.client.replicaof("no", "one")
        primary.follow(replica)
        primary.client.replicaof("no", "one")
        replica.follow(primary)
        assert store.epoch == epoch
        refusals = await store.confirm([b"k", b"l"], AckLevel.REPLICATED, epoch)
        assert {type(refusal).__name__ for refusal in refusals.values()} == {"AckLevelNotReached"}
        assert refusals.keys() == {0, 1}
        assert await store.confirm([b"k"], AckLevel.REPLICATED, await next_epoch(store, epoch)) == {}
    finally:
        await store.close()


async def next_epoch(store, epoch):
    """Returns the epoch after the store has reconnected."""
    for _ in range(500):
        if store.epoch != epoch and store.is_available:
            return store.epoch
        await asyncio.sleep(0.01)
    raise AssertionError("the store did not reconnect")


async def test_a_connection_made_anew_does_not_confirm_what_came_before(primary, replica):
    store = create_store(primary.url, timeout_s=2, acks=AckSettings(replicas_required=1, timeout_s=2))
    await store.open()
    try:
        epoch = store.epoch
        primary.client.client_kill_filter(_type="normal")
        later = await next_epoch(store, epoch)
        assert 0 in await store.confirm([b"k"], AckLevel.REPLICATED, epoch)
        assert await store.confirm([b"k"], AckLevel.REPLICATED, later) == {}
    finally:
        await store.close()


def test_a_store_that_dies_is_waited_for_and_its_replica_confirms_again(server, primary, replica):
    with holdfast.Client(server.address, timeout_s=30) as client:
        session = client.open_session("dies", model=MODEL)
        session.step(TEXT[:5])
        primary.kill()
        primary.start()
        wait_for(lambda: primary.client.info("replication")["connected_slaves"] == 1, 30)
        reply = session.step(TEXT[5:], token_log_prob=True)
        np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][5:], atol=1e-5)
        assert reply.ack_level == "replicated"
