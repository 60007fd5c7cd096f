"""The promise: the server dies at random moments, and no token is lost or applied twice."""

import asyncio
import random

import numpy as np
import pytest

import holdfast
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess

SESSIONS = 50
BYTES_PER_SESSION = 400
KILLS = 5
MODEL = "python-source"

pytestmark = pytest.mark.faults


async def test_fifty_sessions_survive_five_kills(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    text = held_out_text()
    starts = [rng.randrange(len(text) - BYTES_PER_SESSION) for _ in range(SESSIONS)]
    streams = [text[start : start + BYTES_PER_SESSION] for start in starts]
    servers = [ServerProcess(tmp_path / "data")]
    address = servers[0].address
    try:
        async with holdfast.AsyncClient(address, timeout_s=60) as client:
            nemesis = asyncio.create_task(_kill(servers, tmp_path / "data", address, rng))
            writers = (
                _write(client, f"s{index}", data, random.Random(rng.random()), nemesis)
                for index, data in enumerate(streams)
            )
            given = await asyncio.gather(*writers)
            await nemesis
    finally:
        servers[-1].stop()
    assert len(servers) == KILLS + 1
    for data, (log_probs, position) in zip(streams, given, strict=True):
        assert position == len(data)
        np.testing.assert_allclose(log_probs, run(MODEL, data)[1], atol=1e-5, rtol=0)


async def _write(client, name, data, rng, nemesis):
    """Streams a session in random chunks, unevenly in time, until after the last kill."""
    session = await client.open_session(name, model=MODEL)

    async def pieces():
        position = 0
        while position < len(data):
            size = rng.randint(1, 64)
            yield data[position : position + size]
            position += size
            await asyncio.sleep(0.0 if nemesis.done() else rng.uniform(0, 1.2))

    log_probs = [
        reply.token_log_probs async for reply in session.stream(pieces(), chunk=64, token_log_prob=True)
    ]
    return np.concatenate(log_probs), session.position


async def _kill(servers, data_dir, address, rng):
    for _ in range(KILLS):
        await asyncio.sleep(rng.uniform(0.2, 0.8))
        servers[-1].kill()
        servers.append(await asyncio.to_thread(ServerProcess, data_dir, grpc_address=address))
