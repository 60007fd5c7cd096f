"""Connections that get old: streams end at a committed position and go on at once, on a new one."""

import asyncio
import time

import numpy as np
import pytest

import holdfast
from model_export.corpus import join, load_corpus
from service.demo.processes import ServerProcess
from tests.opening import open_at
from tests.oracle import run

MODEL = "python-source"
SESSIONS = 4
STREAMED_S = 5

pytestmark = pytest.mark.faults


class Client(holdfast.AsyncClient):
    """Counts the pauses it makes before it tries again."""

    pause_count = 0

    async def pause(self, *arguments):
        self.pause_count += 1
        await super().pause(*arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-connection-age-s", "1")
    with ServerProcess(tmp_path_factory.mktemp("age") / "data", *flags) as server:
        yield server


async def test_a_session_streams_on_through_the_ages_of_its_connections(server):
    text = join(load_corpus().held_out)
    async with Client(server.address, timeout_s=20) as client:
        given = await asyncio.gather(*(_stream(client, f"s{n}", text[997 * n :]) for n in range(SESSIONS)))
        pause_count = client.pause_count
    stream_count = sum(count for _, _, count in given)
    print(f"{stream_count} streams for {SESSIONS} sessions, {pause_count} pauses")
    for number, (sent, log_probs, count) in enumerate(given):
        assert count >= 3, "the streams did not end while they were used"
        expected = run(MODEL, text[997 * number :][:sent])[1]
        np.testing.assert_allclose(log_probs, expected, atol=1e-5, rtol=0)
    # on a machine with other work a new stream may meet the end of its connection too
    assert pause_count < (stream_count - SESSIONS) / 2


async def _stream(client, name, text):
    """Streams for a while; returns how many tokens, what came back, and how many streams it took."""
    session = await client.session(name, model=MODEL)
    once, count, sent = session._stream_once, 0, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return once(*arguments)

    session._stream_once = counted

    async def pieces():
        nonlocal sent
        until_s = time.monotonic() + STREAMED_S
        while time.monotonic() < until_s:
            yield text[sent : sent + 1]
            sent += 1
            await asyncio.sleep(0.005)

    log_probs = [reply.token_log_probs[0] async for reply in session.stream(pieces(), token_log_prob=True)]
    return sent, log_probs, count


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
