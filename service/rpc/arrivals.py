"""Turns at receiving: of how many unary calls the message is awaited at a time.

While a call's message is read, gRPC may hold as much of it as a message may have, and nothing tells how
much has come. So a bounded number of calls read at a time, and the others wait with no more than the window
of their stream. One that takes long while others wait loses its place. A place that becomes free goes to
the tenant that has the fewest, and there to the call that came last: it is the least likely to be one of
many that were sent to stand in line.
"""

import asyncio
import time
from typing import Any

from holdfast.errors import Overloaded
from service.rpc.call import Call

GRACE_S = 1.0
"""So long a message may take, whoever waits: a large one over a slow connection."""


class Arrivals:
    """Gives places.

    Args:
        places: How many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._since_s: dict[Call, float] = {}  # of those that have a place, the oldest first
        self._taken: dict[str, int] = {}
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}

    async def read(self, call: Call) -> Any:
        """Returns the message of a call, or EOF; what does not come has its place until `leave`."""
        tenant, now_s = call.caller.tenant, time.monotonic()
        if self._free:
            self._free -= 1
            self._taken[tenant] = self._taken.get(tenant, 0) + 1
        else:
            await self._wait(tenant, now_s)
            now_s = time.monotonic()
        self._since_s[call] = now_s
        message = await call.context.read()
        self.leave(call)
        return message

    def leave(self, call: Call) -> None:
        """Frees the place of a call, if it has one."""
        if self._since_s.pop(call, None) is not None:
            self._give_back(call.caller.tenant)

    def sweep(self, now_s: float) -> None:
        """Ends as many of those that take long as wait for a place."""
        wanted = sum(map(len, self._waiting.values()))
        for call, since_s in self._since_s.items():
            if wanted <= 0 or now_s - since_s < GRACE_S:
                return
            waited_s = now_s - since_s
            call.refuse(
                Overloaded(
                    f"the call's message did not come within {waited_s:.1f} s, and other calls waited",
                    retry_after_s=1.0,
                )
            )
            wanted -= 1

    async def _wait(self, tenant: str, now_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, {})[turn] = None
        self.sweep(now_s)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(tenant)  # its turn had come
            else:
                self._leave_line(tenant, turn)
            raise

    def _give_back(self, tenant: str) -> None:
        """A place of a tenant is free: whoever is next has it."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
        while self._waiting:
            next_one = min(self._waiting, key=lambda name: self._taken.get(name, 0))
            turn = next(reversed(self._waiting[next_one]))
            self._leave_line(next_one, turn)
            if not turn.done():  # else it was cancelled just now
                self._taken[next_one] = self._taken.get(next_one, 0) + 1
                turn.set_result(None)
                return
        self._free += 1

    def _leave_line(self, tenant: str, turn: asyncio.Future[None]) -> None:
        """Takes somebody out of the line, if he still stands there."""
        line = self._waiting.get(tenant, {})
        line.pop(turn, None)
        if not line:
            self._waiting.pop(tenant, None)
