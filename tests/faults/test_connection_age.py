"""Connections that get old: streams end at a committed position and go on at once, on a new one."""

import asyncio
import time

import numpy as np
import pytest

import holdfast
from tests.support.opening import open_at
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess

MODEL = "python-source"
SESSIONS = 4
STREAMED_S = 5

pytestmark = pytest.mark.faults


class Counts:
    """Counts the streams of a client, and the pauses it makes before it tries again."""

    def __init__(self, calls, monkeypatch):
        self.pause_count = self.stream_count = 0
        self._next_stub, self._pause = calls.next_stub, calls.pause
        monkeypatch.setattr(calls, "next_stub", self._counting_stub)
        monkeypatch.setattr(calls, "pause", self._counted_pause)

    def _counting_stub(self):
        return CountingStub(self, self._next_stub())

    async def _counted_pause(self, *arguments):
        self.pause_count += 1
        await self._pause(*arguments)


class CountingStub:
    def __init__(self, counts, stub):
        self._counts, self._stub = counts, stub

    def __getattr__(self, rpc):
        self._counts.stream_count += rpc == "StreamSteps"
        return getattr(self._stub, rpc)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-connection-age-s", "1")
    with ServerProcess(tmp_path_factory.mktemp("age") / "data", *flags) as server:
        yield server


async def test_a_session_streams_on_through_the_ages_of_its_connections(server, monkeypatch):
    text = held_out_text()
    async with holdfast.AsyncClient(server.address, timeout_s=20) as client:
        counts = Counts(client._calls, monkeypatch)
        given = await asyncio.gather(*(_stream(client, f"s{n}", text[997 * n :]) for n in range(SESSIONS)))
        pause_count, stream_count = counts.pause_count, counts.stream_count
    print(f"{stream_count} streams for {SESSIONS} sessions, {pause_count} pauses")
    assert stream_count >= 3 * SESSIONS, "the streams did not end while they were used"
    for number, (sent, log_probs) in enumerate(given):
        expected = run(MODEL, text[997 * number :][:sent])[1]
        np.testing.assert_allclose(log_probs, expected, atol=1e-5, rtol=0)
    # on a machine with other work a new stream may meet the end of its connection too
    assert pause_count < (stream_count - SESSIONS) / 2


async def _stream(client, name, text):
    """Streams for a while; returns how many tokens, and what came back."""
    session = await client.open_session(name, model=MODEL)
    sent = 0

    async def pieces():
        nonlocal sent
        until_s = time.monotonic() + STREAMED_S
        while time.monotonic() < until_s:
            yield text[sent : sent + 1]
            sent += 1
            await asyncio.sleep(0.005)

    log_probs = [reply.token_log_probs[0] async for reply in session.stream(pieces(), token_log_prob=True)]
    return sent, log_probs


async def test_batches_stream_on_through_the_ages_of_their_connection(server):
    ids = [f"row-{row}" for row in range(8)]
    open_at(server.address, *ids)
    async with holdfast.AsyncClient(server.address) as client, client.batches(MODEL) as batches:
        until_s, count, replies = time.monotonic() + 3.5, 0, []
        while time.monotonic() < until_s:
            replies.append(await batches.submit(ids, b"x" * len(ids), [count] * len(ids)))
            count += 1
            await asyncio.sleep(0.002)
        given = await asyncio.gather(*replies)
    assert count > 100
    for number, reply in enumerate(given):
        assert not reply.errors
        assert reply.positions.tolist() == [number + 1] * len(ids)
