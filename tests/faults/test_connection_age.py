"""Connections that get old: streams end at a committed position and go on at once, on a new one."""

import asyncio
import time

import numpy as np
import pytest

import holdfast
from tests.rpc.test_metrics import sample
from tests.support.opening import open_at
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess

MODEL = "python-source"
SESSIONS = 4
STREAMED_S = 5

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-connection-age-s", "1")
    with ServerProcess(tmp_path_factory.mktemp("age") / "data", *flags) as server:
        yield server


async def test_a_session_streams_on_through_the_ages_of_its_connections(server, monkeypatch):
    text = held_out_text()
    async with holdfast.AsyncClient(server.address, timeout_s=20) as client:
        pauses, pause = [], client._calls.pause

        async def counted(*arguments):
            pauses.append(arguments)
            await pause(*arguments)

        monkeypatch.setattr(client._calls, "pause", counted)
        given = await asyncio.gather(*(_stream(client, f"s{n}", text[997 * n :]) for n in range(SESSIONS)))
    stream_count = sample(server, "grpc_server_started_total", grpc_method="StreamBatches")
    print(f"{stream_count} streams, {len(pauses)} pauses")
    assert stream_count >= 3, "the streams did not end while they were used"
    for number, (sent, log_probs) in enumerate(given):
        expected = run(MODEL, text[997 * number :][:sent])[1]
        np.testing.assert_allclose(log_probs, expected, atol=1e-5, rtol=0)
    # on a machine with other work a new stream may meet the end of its connection too
    assert len(pauses) < stream_count * SESSIONS / 2


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
