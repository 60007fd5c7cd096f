"""Replicas restart under load: no client sees an error, nothing is lost, nothing is applied twice."""

import asyncio
import os
import time

import numpy as np
import pytest

import holdfast
from tests.faults import LONG
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess

MODEL = "python-source"
REPLICAS = 3
SESSIONS = 20 if LONG else 8
HERD = int(os.environ.get("HOLDFAST_TEST_HERD", "1000" if LONG else "300"))
HERD_CONNECTIONS = 16

pytestmark = pytest.mark.faults


class Longest:
    """The longest time between two replies of a session."""

    def __init__(self):
        self.pause_s = 0.0


async def test_a_rolling_restart_of_three_replicas_goes_unnoticed(tmp_path):
    data = tmp_path / "data"
    replicas = [ServerProcess(data) for _ in range(REPLICAS)]
    addresses = [replica.address for replica in replicas]
    longest = Longest()
    try:
        async with holdfast.AsyncClient(addresses, timeout_s=30) as client:
            rolling = asyncio.create_task(_restart_in_turn(replicas, data))
            writers = (_stream(client, number, rolling, longest) for number in range(SESSIONS))
            given = await asyncio.gather(*writers)
            exit_codes = await rolling
    finally:
        for replica in replicas:
            replica.stop()
    sent = sum(count for count, _ in given)
    print(f"{sent} tokens, {SESSIONS} sessions, longest pause {longest.pause_s * 1e3:.0f} ms")
    assert exit_codes == [0] * REPLICAS
    for number, (count, log_probs) in enumerate(given):
        expected = run(MODEL, held_out_text()[997 * number :][:count])[1]
        np.testing.assert_allclose(log_probs, expected, atol=1e-5, rtol=0)


async def _restart_in_turn(replicas, data):
    """Drains each replica and starts it again on its port, one after the other."""
    exit_codes = []
    for number, replica in enumerate(replicas):
        await asyncio.sleep(0.5)
        exit_codes.append(await asyncio.to_thread(replica.stop))
        replicas[number] = await asyncio.to_thread(ServerProcess, data, grpc_address=replica.address)
    await asyncio.sleep(0.5)
    return exit_codes


async def _stream(client, number, rolling, longest):
    """Streams until all replicas have restarted; returns how many tokens, and what came back."""
    session = await client.open_session(f"s{number}", model=MODEL)
    text, sent = held_out_text()[997 * number :], 0

    async def pieces():
        nonlocal sent
        while not rolling.done():
            yield text[sent : sent + 1]
            sent += 1
            await asyncio.sleep(0.02)

    log_probs, last_s = [], time.monotonic()
    async for reply in session.stream(pieces(), token_log_prob=True):
        log_probs.append(reply.token_log_probs[0])
        now_s = time.monotonic()
        longest.pause_s, last_s = max(longest.pause_s, now_s - last_s), now_s
    return sent, log_probs


async def test_single_steps_go_on_through_a_rolling_restart(tmp_path):
    data = tmp_path / "data"
    replicas = [ServerProcess(data) for _ in range(REPLICAS)]
    try:
        target = "ipv4:" + ",".join(replica.address for replica in replicas)
        async with holdfast.AsyncClient(target, timeout_s=30) as client:
            rolling = asyncio.create_task(_restart_in_turn(replicas, data))
            counts = await asyncio.gather(*(_step_on(client, number, rolling) for number in range(8)))
            assert await rolling == [0] * REPLICAS
    finally:
        for replica in replicas:
            replica.stop()
    assert min(counts) > REPLICAS


async def _step_on(client, number, rolling):
    session = await client.open_session(f"s{number}", model=MODEL)
    count = 0
    while not rolling.done():
        reply = await session.step(held_out_text()[count : count + 1], token_log_prob=True)
        count += 1
        assert reply.position == count
        await asyncio.sleep(0.02)
    [expected] = run(MODEL, held_out_text()[:count])[1][-1:]
    np.testing.assert_allclose(reply.token_log_probs[0], expected, atol=1e-5, rtol=0)
    return count


async def test_a_herd_that_comes_back_at_once_after_a_kill_is_served(tmp_path):
    """All sessions have a stream when their server is killed, and a chunk to send while it is gone."""
    data = tmp_path / "data"
    server = ServerProcess(data)
    is_gone = asyncio.Event()
    started = asyncio.Semaphore(0)
    try:
        async with (
            holdfast.AsyncClient(server.address, timeout_s=120, connections=HERD_CONNECTIONS) as client,
            asyncio.TaskGroup() as group,  # ends the test with the first that fails
        ):
            members = [
                group.create_task(_belong(client, number, started, is_gone)) for number in range(HERD)
            ]
            for _ in range(HERD):
                await started.acquire()
            server.kill()
            is_gone.set()
            server = await asyncio.to_thread(ServerProcess, data, grpc_address=server.address)
            back_s = time.monotonic()
    finally:
        server.stop()
    waits = sorted(member.result() - back_s for member in members)
    print(f"{HERD} sessions back after {waits[HERD // 2]:.2f} s (median), {waits[-1]:.2f} s (last)")


async def _belong(client, number, started, is_gone):
    """Streams before and after the kill; returns when the reply after it came."""
    session = await client.open_session(f"s{number}", model=MODEL)

    async def pieces():
        yield "abcd"
        await is_gone.wait()
        yield "efgh"

    positions, last_s = [], 0.0
    async for reply in session.stream(pieces(), chunk=4):
        positions.append(reply.position)
        last_s = time.monotonic()
        if len(positions) == 1:
            started.release()
    assert positions == [4, 8]
    return last_s
