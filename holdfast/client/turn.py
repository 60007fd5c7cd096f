"""Whose turn it is to use a session: one call at a time, in the order in which they came."""

import asyncio
from collections import deque

from holdfast.client.lifetime import Lifetime
from holdfast.errors import ClientClosed, SessionBusy


class Turn:
    """Lets one call after the other use a session, none of them waiting for ever.

    Args:
        lifetime: Of the client; its end ends every wait.
    """

    def __init__(self, lifetime: Lifetime) -> None:
        self._lifetime = lifetime
        self._holder: str | None = None
        self._is_over = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take_at_once(self, holder: str) -> bool:
        """Takes the turn if nobody has it; returns whether it is taken. See `take`."""
        if self._holder is not None or self._is_over:
            return False
        self._holder = holder
        return True

    async def take(self, holder: str, wait_s: float | None) -> None:
        """Waits for the turn; whoever gets it calls `release`.

        Args:
            holder: Who that is, for the error of those who wait in vain.
            wait_s: Longest wait; None is any.

        Raises:
            SessionBusy: It did not come in time.
            ClientClosed: The client was closed meanwhile, or the session before.
        """
        if self._is_over:
            raise ClientClosed(
                "this session object was closed; open the session again", code="CANCELLED"
            ).tell("nothing was sent")
        if self._holder is not None:
            await self._wait(wait_s)
        self._holder = holder

    def release(self) -> None:
        """Gives the turn to the next one."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._holder = None

    def end(self) -> None:
        """Refuses the session to every call from now on."""
        self._is_over = True

    async def _wait(self, wait_s: float | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        is_mine = False
        try:
            closed = self._lifetime.closed
            await asyncio.wait((turn, closed), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            is_mine = turn.done() and not closed.done()
        finally:
            if not is_mine:
                self._give_up(turn)
        if self._lifetime.is_over:
            raise ClientClosed("the client was closed").tell("nothing was sent")
        if not is_mine:
            raise SessionBusy(f"{self._holder} held the session for the whole time limit").tell(
                "nothing was sent; read a stream to its end or close it before the next call"
            )

    def _give_up(self, turn: "asyncio.Future[None]") -> None:
        if turn.done():
            self.release()  # it came, and too late
        else:
            self._waiting.remove(turn)
