"""Turns at something that few can do at once: who waits longest is next, by tenants.

A tenant with a thousand waiting gets as many turns as one with a single one, as long as both wait.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """Gives turns.

    Args:
        count: So many have their turn at once.
    """

    def __init__(self, count: int) -> None:
        self._free_count = count
        self._lines: dict[bytes, deque[asyncio.Future[None]]] = {}  # the tenant whose turn is next is first

    @contextlib.asynccontextmanager
    async def turn(self, tenant: bytes) -> AsyncIterator[None]:
        """Waits for a turn, and has it while the block lasts."""
        await self._wait(tenant)
        try:
            yield
        finally:
            self._next()

    async def _wait(self, tenant: bytes) -> None:
        if self._free_count:
            self._free_count -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._next()  # it had just been given one
            raise

    def _next(self) -> None:
        while self._lines:
            tenant = next(iter(self._lines))
            line = self._lines.pop(tenant)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line  # at the end
            if not turn.done():
                turn.set_result(None)
                return
        self._free_count += 1
