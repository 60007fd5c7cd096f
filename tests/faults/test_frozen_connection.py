"""A connection that swallows everything and is never closed: the next attempt goes over a new one."""

import asyncio
import time

import pytest

import holdfast
from holdfast.client import transport
from holdfast.errors import ServerUnavailable
from tests.faults.verdict import MODEL
from tests.nemesis.proxy import FaultProxy
from tests.support.server import ServerProcess

RETRY = holdfast.RetryPolicy(attempt_s=1.0)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture
def proxy(server):
    with FaultProxy(server.address) as proxy:
        yield proxy


def test_a_call_goes_on_over_a_new_connection(proxy):
    with holdfast.Client(proxy.address, timeout_s=8, retry=RETRY) as client:
        session = client.open_session(model=MODEL)
        session.step("a")
        proxy.freeze()
        started_s = time.monotonic()
        assert session.step("b").position == 2
        assert 0.9 < time.monotonic() - started_s < 4
        started_s = time.monotonic()
        assert client.list_models()
        assert session.step("c").position == 3
        assert time.monotonic() - started_s < 1, "the frozen connection was used again"
    assert proxy.connection_count == 2


def test_a_call_that_is_not_repeated_leaves_a_good_connection_behind(proxy):
    with holdfast.Client(proxy.address, timeout_s=8, retry=RETRY) as client:
        client.open_session("row", model=MODEL)
        proxy.freeze()
        with pytest.raises(holdfast.errors.DeadlinePassed):
            client.step_batch(MODEL, ["row"], b"x", timeout_s=1)  # rows that are appended
        assert client.step_batch(MODEL, ["row"], b"x", timeout_s=1).positions.tolist() == [1]


def test_a_stream_goes_on_over_a_new_connection(proxy):
    with holdfast.Client(proxy.address, timeout_s=8, retry=RETRY) as client:
        session = client.open_session(model=MODEL)
        positions = []
        for reply in session.stream("a" * 99):
            positions.append(reply.position)
            if reply.position == 3:
                proxy.freeze()
                started_s = time.monotonic()
        assert time.monotonic() - started_s < 4
        assert positions == list(range(1, 100))
    assert proxy.connection_count == 2


@pytest.mark.parametrize("positions", [[0], None])
async def test_batches_fail_in_time_and_the_next_go_over_a_new_connection(proxy, positions):
    async with (
        holdfast.AsyncClient(proxy.address, timeout_s=2, retry=RETRY) as client,
        client.batches(MODEL) as batches,
    ):
        await client.open_batch(MODEL, [f"s-{positions}"])
        proxy.freeze()
        started_s = time.monotonic()
        reply = await batches.submit([f"s-{positions}"], b"x", positions)
        with pytest.raises(ServerUnavailable, match="no reply"):
            await asyncio.wait_for(reply, 10)
        limit_s = 1 if positions else 2  # rows that are appended are waited for as long as may be
        assert limit_s <= time.monotonic() - started_s < limit_s + 2
        again = await asyncio.wait_for(await batches.submit([f"s-{positions}"], b"x", positions), 2)
        assert again.positions.tolist() == [1]


def test_sessions_that_share_a_connection_give_it_up_once(proxy):
    with holdfast.Client(proxy.address, timeout_s=8, retry=RETRY) as client:
        sessions = [client.open_session(model=MODEL) for _ in range(4)]

        async def step_all():
            return await asyncio.gather(*(session._writer.step("a") for session in sessions))

        client._thread.run(step_all())
        proxy.freeze()
        replies = client._thread.run(step_all())
        assert [reply.position for reply in replies] == [2] * 4
    assert proxy.connection_count == 2


def test_pings_end_a_stream_whose_connection_is_dead(proxy, monkeypatch):
    fast = {
        "grpc.keepalive_time_ms": 500,
        "grpc.keepalive_timeout_ms": 500,
        "grpc.http2.ping_timeout_ms": 500,
    }
    monkeypatch.setattr(
        transport, "OPTIONS", [(name, fast.get(name, old)) for name, old in transport.OPTIONS]
    )
    patient = holdfast.RetryPolicy(attempt_s=60)
    with holdfast.Client(proxy.address, timeout_s=60, retry=patient) as client:
        session = client.open_session(model=MODEL)
        stream = session.stream("a" * 99)
        assert next(stream).position == 1
        proxy.freeze()
        started_s = time.monotonic()
        assert [reply.position for reply in stream] == list(range(2, 100))
        assert time.monotonic() - started_s < 5


def test_a_connection_without_calls_is_not_pinged(proxy, monkeypatch):
    fast = {
        "grpc.keepalive_time_ms": 200,
        "grpc.keepalive_timeout_ms": 200,
        "grpc.http2.ping_timeout_ms": 200,
    }
    monkeypatch.setattr(
        transport, "OPTIONS", [(name, fast.get(name, old)) for name, old in transport.OPTIONS]
    )
    with holdfast.Client(proxy.address, timeout_s=8) as client:
        client.list_models()
        time.sleep(0.5)  # the last ping of the call, and its answer
        sent = proxy.to_server.forwarded
        time.sleep(1)
        assert proxy.to_server.forwarded == sent
