"""Generation on the server beside the same loop in a client, in turns: `python -m benchmarks.generation`.

Both draw from the same distribution by the same code, over `AsyncClient`: one by `session.generate`, the
other by a step for each token, which returns the logits.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.contestants import Contestant
from holdfast import AsyncClient, AsyncSession
from holdfast.demo.processes import ServerProcess
from service.engine.sampling import Options, Sample, draw
from service.store.embedded import EmbeddedStore

MODEL = "python-source"
PROMPT = b"def main("
SAMPLE = Sample(Options(temperature=0.8, top_k=40, top_p=0.95), seed=1)

Loop = Callable[[AsyncSession, float], Awaitable[int]]
"""Generates until a monotonic time; returns how many tokens."""


class Turn(NamedTuple):
    """What a turn gave: tokens a second, and microseconds of CPU per token."""

    tokens_per_s: float
    server_us: float
    store_us: float
    client_us: float


async def on_the_server(session: AsyncSession, until_s: float) -> int:
    """Has the server draw and apply."""
    options = SAMPLE.options
    count = 0
    tokens = session.generate(
        65536,
        PROMPT,
        seed=SAMPLE.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    async for _ in tokens:
        count += 1
        if time.monotonic() >= until_s:
            break
    await tokens.aclose()
    return count


async def in_the_client(session: AsyncSession, until_s: float) -> int:
    """Steps each token, and draws the next one here."""
    reply = await session.step(PROMPT, outputs="logits")
    count = 0
    while time.monotonic() < until_s:
        drawn = draw(reply.outputs["logits"][-1:], "logits", [SAMPLE], np.array([session.position]))
        reply = await session.step(bytes([int(drawn.ids[0])]), outputs="logits")
        count += 1
    return count


async def turn(server: Contestant, loop: Loop, concurrency: int, seconds: float) -> Turn:
    """Generates in so many sessions at a time."""
    async with AsyncClient(server.address) as client:
        sessions = [await client.open_session(model=MODEL) for _ in range(concurrency)]
        began_s = time.monotonic()
        before = server.server_cpu_s(), server.store_cpu_s() or 0.0, time.process_time()
        counts = await asyncio.gather(*(loop(session, began_s + seconds) for session in sessions))
        after = server.server_cpu_s(), server.store_cpu_s() or 0.0, time.process_time()
        count = sum(counts)
        used = [(end - start) / count * 1e6 for end, start in zip(after, before, strict=True)]
        return Turn(count / (time.monotonic() - began_s), *used)


def main() -> None:
    """Prints a Markdown table with a row for each way and number of sessions."""
    parser = argparse.ArgumentParser(description="Generation on the server and in a client, in turns.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per turn")
    options = parser.parse_args()
    cases: list[tuple[str, Loop, int]] = [
        (name, loop, concurrency)
        for concurrency in (1, 64)
        for name, loop in (("session.generate", on_the_server), ("loop in the client", in_the_client))
    ]
    turns: dict[tuple[str, int], list[Turn]] = {(name, concurrency): [] for name, _, concurrency in cases}
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        store = EmbeddedStore.start(folder / "store")
        try:
            with ServerProcess(folder / "server", "--store", store.url) as process:
                server = Contestant("holdfast", process.address, process.pid, store.pid)
                for number in range(options.rounds + 1):
                    for name, loop, concurrency in cases:
                        took = asyncio.run(turn(server, loop, concurrency, options.seconds))
                        turns[name, concurrency] += [took] if number else []  # the first one warms up
        finally:
            store.release()
    print(table({case: median(taken) for case, taken in turns.items()}))


def median(turns: list[Turn]) -> Turn:
    """Returns the median of each figure."""
    return Turn(*(statistics.median(column) for column in zip(*turns, strict=True)))


def table(results: dict[tuple[str, int], Turn]) -> str:
    """Returns a Markdown table, a row for each way and number of sessions; CPU in us per token."""
    lines = [
        "| sessions | loop | tokens/s | server us | store us | client us | together us |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for (name, concurrency), (rate, *used) in results.items():
        figures = [f"{value:,.0f}" for value in (rate, *used, sum(used))]
        lines.append(f"| {concurrency} | {' | '.join((name, *figures))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
