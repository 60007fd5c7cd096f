"""One turn of a contestant under load, and what it cost."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import grpc.aio

from benchmarks.contestants import Contestant
from benchmarks.results import Round
from holdfast.bench.loads import CHANNEL_OPTIONS, Took

_runner = asyncio.Runner()
"""One loop for all turns: what is left of a call that broke is delivered to the loop it began on."""


class Load(Protocol):
    """A closed loop, of sessions of its own or of a population."""

    async def open(self, stubs: Sequence[Any]) -> None:
        """Opens the sessions that are not open yet."""

    async def run(self, stubs: Sequence[Any], seconds: float) -> Took:
        """Loads a server for a while."""


def load(contestant: Contestant, loop: Load, seconds: float) -> Round:
    """Loads a contestant for a while; opening sessions, where that is left to do, is not measured."""
    return _runner.run(_load(contestant, loop, seconds))


async def _load(contestant: Contestant, loop: Load, seconds: float) -> Round:
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(contestant.address, options=CHANNEL_OPTIONS)
            )
            for _ in range(contestant.connection_count)
        ]
        stubs = [contestant.make_stub(channel) for channel in channels]
        await loop.open(stubs)
        server_s, store_s = contestant.server_cpu_s(), contestant.store_cpu_s()
        took = await loop.run(stubs, seconds)
        server_end_s, store_end_s = contestant.server_cpu_s(), contestant.store_cpu_s()
    store_us = None
    if store_s is not None and store_end_s is not None:
        store_us = (store_end_s - store_s) / took.step_count * 1e6
    server_us = (server_end_s - server_s) / took.step_count * 1e6
    return Round(took.steps_per_s, *took.percentiles_ms(), server_us, store_us)
