"""Where a caller's streams get their tokens from: iterators that dawdle, fail and give rubbish."""

import asyncio
import time
from collections import deque

KINDS = ("bytes", "pieces", "iterator", "async iterator")
RUBBISH = (object(), 2.5, -1, None)
"""What is no tokens, or of another kind; never taken."""


class SourceFailed(Exception):
    """What a source raises of its own."""


class Tap:
    """Gives pieces one by one, and knows what it gave.

    Attributes:
        given: Tokens handed over so far.
        is_asked: Somebody waits for the next piece.
    """

    def __init__(self, pieces, pause_s, fails_after):
        self._pieces = deque(pieces)
        self._pause_s = pause_s
        self._fails_after = fails_after
        self.given = bytearray()
        self.is_asked = False

    @property
    def rest(self):
        """Tokens that nobody has asked for."""
        return b"".join(piece for piece in self._pieces if type(piece) is bytes)

    def next(self):
        """Returns the next piece.

        Raises:
            IndexError: There is none.
            SourceFailed: That was to happen now.
        """
        if self._fails_after == 0:
            raise SourceFailed
        self._fails_after -= 1
        piece = self._pieces.popleft()
        if type(piece) is bytes:
            self.given += piece
        return piece


class Iterator(Tap):
    def __iter__(self):
        return self

    def __next__(self):
        self.is_asked = True
        try:
            time.sleep(self._pause_s())
            return self.next()
        except IndexError:
            raise StopIteration from None
        finally:
            self.is_asked = False


class AsyncIterator(Tap):
    """Does not always give up when it is cancelled."""

    def __init__(self, pieces, pause_s, fails_after, is_stubborn):
        super().__init__(pieces, pause_s, fails_after)
        self._is_stubborn = is_stubborn

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.is_asked = True
        try:
            pause_s = self._pause_s()
            try:
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                if not self._is_stubborn:
                    raise
                await asyncio.sleep(pause_s)
            return self.next()
        except IndexError:
            raise StopAsyncIteration from None
        finally:
            self.is_asked = False
