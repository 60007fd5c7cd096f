"""What a pipe needs of where its records go, and how records of many sessions go there together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from holdfast.pipe.places import Place
from holdfast.pipe.records import Written

Thing = TypeVar("Thing")


class Sink(Protocol):
    """Keeps records, each once."""

    async def last(self, key: str) -> Place | None:
        """Returns the place of the last record of a key; None if there is none, or that is not known.

        Raises:
            EndFailed: It cannot be asked.
        """

    async def write(self, records: Sequence[Written]) -> None:
        """Writes records, without those whose key has one of this place or a later one.

        Raises:
            EndFailed: As it says; some may be written.
        """

    async def close(self) -> None:
        """Lets go of the sink."""


class Together(Generic[Thing]):
    """Has a call take all things that came while the one before was under way.

    Args:
        take: What is called.
    """

    def __init__(self, take: Callable[[list[Thing]], Awaitable[None]]) -> None:
        self._take = take
        self._waiting: list[Thing] = []
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def put(self, thing: Thing) -> "asyncio.Future[None]":
        """Hands a thing over; the future ends as the call does that has it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._waiting.append(thing)
        return self._next

    async def settled(self) -> None:
        """Returns when all that was handed over is taken, or failed."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._waiting:
                things, self._waiting = self._waiting, []
                future, self._next = self._next, None
                assert future is not None, "bug: things wait without a future"
                try:
                    await self._take(things)
                except Exception as error:  # noqa: BLE001 -- those who wait get it
                    future.set_exception(error)
                    future.exception()  # perhaps nobody waits any more
                else:
                    future.set_result(None)
        finally:
            self._task = None
