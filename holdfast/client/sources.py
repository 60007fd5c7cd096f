"""Where the tokens of a stream come from: a sequence, an iterator, or an asynchronous one.

A sequence lies there whole, so several chunks of it are under way at a time. An iterator is asked for its
next part only when the reply to the one before was given: it may wait for that, or for the world.
"""

import asyncio
from collections.abc import AsyncIterable, Iterator
from typing import Any, Final, Protocol

from holdfast.client.fetching import END, Fetching
from holdfast.client.options import whole_number
from holdfast.client.thread_source import ThreadSource
from holdfast.client.tokens import Pieces, is_whole, split
from holdfast.pending import Tokens

MAX_IN_FLIGHT = 32

CANCEL_S: Final = 1.0
"""So long a source may take to give up a fetch that is cancelled."""


class Source(Protocol):
    """Gives parts one by one, each of them any number of tokens."""

    is_empty: bool

    @property
    def uncollected(self) -> "asyncio.Future[Any] | None":
        """The fetch that was begun and not collected."""

    def fetch(self) -> "asyncio.Future[Any]":
        """Begins to fetch the next part, unless that is under way; END comes after the last one."""

    def collect(self) -> Any:
        """Returns what a fetch that is done has brought; raises what the source raised."""

    async def leave(self) -> None:
        """Gives up the source; what is `uncollected` then has been, or is being, taken out of it."""


def check_options(chunk: int, max_in_flight: int | None) -> None:
    """Makes sure that the options of a stream make sense.

    Raises:
        TypeError: One is no integer.
        ValueError: One is out of its range.
    """
    whole_number("chunk", chunk, at_least=1)
    if max_in_flight is not None:
        whole_number("max_in_flight", max_in_flight, at_least=1, at_most=MAX_IN_FLIGHT)


def is_sequence(tokens: Pieces) -> bool:
    """Whether tokens, or pieces of them, lie there whole: they have a length and an index."""
    return is_whole(tokens) or (hasattr(tokens, "__len__") and hasattr(tokens, "__getitem__"))


def parts_of(tokens: Any, size: int) -> Iterator[Any]:
    """Returns the parts of what is not asynchronous; a sequence is cut to `size` as it is asked for."""
    if is_sequence(tokens):
        return _cut(tokens, size)
    parts: Iterator[Any] = iter(tokens)
    return parts


def open_source(tokens: Pieces, size: int) -> Source:
    """Returns the source for use on an event loop, which it never holds up."""
    if isinstance(tokens, AsyncIterable):
        return AsyncSource(tokens)
    if is_sequence(tokens):
        return SequenceSource(parts_of(tokens, size))
    return ThreadSource(parts_of(tokens, size))


class SequenceSource(Fetching):
    """Cuts a sequence; there is never anything to wait for."""

    def __init__(self, pieces: Iterator[Tokens]) -> None:
        super().__init__()
        self._pieces = pieces

    @property
    def uncollected(self) -> None:
        """See `Source`; the rest of the sequence is still the caller's."""

    def fetch(self) -> "asyncio.Future[Any]":
        """See `Source`."""
        self._fetch = asyncio.get_running_loop().create_future()
        self._fetch.set_result(next(self._pieces, END))
        return self._fetch

    async def leave(self) -> None:
        """See `Source`."""


class AsyncSource(Fetching):
    """Waits for an asynchronous iterable in a task of its own, so that no reply has to wait for it."""

    def __init__(self, parts: AsyncIterable[Any]) -> None:
        super().__init__()
        self._parts = aiter(parts)

    def fetch(self) -> "asyncio.Future[Any]":
        """See `Source`."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._next())
        return self._fetch

    async def leave(self) -> None:
        """See `Source`; a fetch that does not give up is left to itself."""
        if self._fetch is not None and not self._fetch.done():
            self._fetch.cancel()
            await asyncio.wait((self._fetch,), timeout=CANCEL_S)

    async def _next(self) -> Any:
        return await anext(self._parts, END)


def _cut(tokens: Any, size: int) -> Iterator[Tokens]:
    for part in [tokens] if is_whole(tokens) else tokens:
        yield from split(part, size)
