"""One turn of a contestant under load, and what it cost."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.contestants import Contestant
from benchmarks.results import Round
from holdfast.bench.loads import Took

_runner = asyncio.Runner()
"""One loop for all turns: what is left of a call that broke is delivered to the loop it began on."""


class Load(Protocol):
    """A closed loop, of sessions of its own or of a population.

    Both methods get the one connection of the turn, as `Contestant.connect` made it.
    """

    async def open(self, stubs: Sequence[Any]) -> None:
        """Opens the sessions that are not open yet."""

    async def run(self, stubs: Sequence[Any], seconds: float) -> Took:
        """Loads a server for a while."""


def load(contestant: Contestant, loop: Load, seconds: float) -> Round:
    """Loads a contestant for a while; opening sessions, where that is left to do, is not measured."""
    return _runner.run(_load(contestant, loop, seconds))


async def _load(contestant: Contestant, loop: Load, seconds: float) -> Round:
    async with contestant.connect(contestant.address) as connection:
        await loop.open([connection])
        server_s, store_s, load_s = contestant.server_cpu_s(), contestant.store_cpu_s(), time.process_time()
        took = await loop.run([connection], seconds)
        load_end_s = time.process_time()
        server_end_s, store_end_s = contestant.server_cpu_s(), contestant.store_cpu_s()

    def us_per_step(begin_s: float, end_s: float) -> float:
        return (end_s - begin_s) / took.step_count * 1e6

    store_us = None
    if store_s is not None and store_end_s is not None:
        store_us = us_per_step(store_s, store_end_s)
    server_us, load_us = us_per_step(server_s, server_end_s), us_per_step(load_s, load_end_s)
    return Round(took.steps_per_s, *took.percentiles_ms(), server_us, store_us, load_us)
