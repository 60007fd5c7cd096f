"""Sessions that stream through a server while something breaks, judged by the uninterrupted run."""

import asyncio
import random

import numpy as np

import holdfast
from tests.faults import LONG
from tests.support.oracle import held_out_text, run

MODEL = "python-source"
SESSIONS, BYTES = (24, 300) if LONG else (16, 200)


async def survive(address, nemesis, *, session_count=SESSIONS, byte_count=BYTES, prefix="s"):
    """Streams sessions until `nemesis` is over and some time after it, and compares their outputs.

    Args:
        address: HOST:PORT of the server.
        nemesis: Coroutine that breaks something; starts when the sessions are under way.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    text = held_out_text()
    starts = [rng.randrange(len(text) - byte_count) for _ in range(session_count)]
    streams = [text[start : start + byte_count] for start in starts]
    async with holdfast.AsyncClient(address, timeout_s=60) as client:
        breaking = asyncio.create_task(nemesis)
        writers = (
            _write(client, f"{prefix}{index}", data, random.Random(rng.random()), breaking)
            for index, data in enumerate(streams)
        )
        given = await asyncio.gather(*writers)
        await breaking
    for data, (log_probs, position) in zip(streams, given, strict=True):
        assert position == len(data)
        np.testing.assert_allclose(log_probs, run(MODEL, data)[1], atol=1e-5, rtol=0)


async def _write(client, name, data, rng, breaking):
    """Streams a session in random chunks, unevenly in time, until all is mended again."""
    session = await client.open_session(name, model=MODEL)

    async def pieces():
        position = 0
        while position < len(data):
            size = rng.randint(1, 12)
            if position > len(data) * 3 // 4:  # keeps a quarter for after it
                await asyncio.wait({breaking})
            yield data[position : position + size]
            position += size
            await asyncio.sleep(0.0 if breaking.done() else rng.uniform(0, 0.1))

    log_probs = [
        reply.token_log_probs async for reply in session.stream(pieces(), chunk=16, token_log_prob=True)
    ]
    return np.concatenate(log_probs), session.position
