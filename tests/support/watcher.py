"""A watch that runs beside a test, and what it has been shown so far."""

import asyncio
import contextlib

from holdfast.errors import HoldfastError

PATIENCE_S = 20.0


class Watcher:
    """Collects what a client's watch of a session yields.

    Attributes:
        shown: Every chunk so far; the first one says where the session stands.
    """

    def __init__(self, client, session_id, **options):
        self.shown = []
        self._chunks = client.watch_session(session_id, **options)
        self._task = None

    async def __aenter__(self):
        self._task = asyncio.create_task(self._watch())
        await self.until(lambda: self.shown)
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, HoldfastError):
            await self._task

    @property
    def positions(self):
        return [chunk.position for chunk in self.shown]

    async def at(self, position):
        """Waits for a chunk that ends at a position, and returns it."""
        return await self.until(lambda: next((one for one in self.shown if one.position == position), None))

    async def until(self, condition):
        """Waits until something is true of what was shown; fails with the error of the watch."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                if self._task.done():
                    self._task.result()
                    assert condition(), f"the watch ended with {self.shown}"
                await asyncio.sleep(0.005)
        return found

    async def end(self):
        """Waits until the watch is over."""
        async with asyncio.timeout(PATIENCE_S):
            await self._task

    def check_sums(self):
        """Makes sure that what was shown and what was skipped are all the tokens there were."""
        before = self.shown[0].position
        for chunk in self.shown[1:]:
            if chunk.position > before or not chunk.replayed:
                assert chunk.position - chunk.token_count - chunk.skipped_tokens == before, self.shown
                before = chunk.position

    async def _watch(self):
        async for chunk in self._chunks:
            self.shown.append(chunk)
