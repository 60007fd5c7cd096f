"""An iterator that may block, for use on an event loop: it runs in a thread of its own.

Not in the event loop's executor, whose threads the interpreter waits for when it exits: a source that waits
for a microphone or a broker would hold that up. The thread is a daemon, and asks the iterator for a part
only when one is wanted: never after its stream was left.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Final

from holdfast.client.fetching import END, Fetching

LEAVE_S: Final = 0.1
"""So long a fetch that is under way is waited for when its stream is left; a source that blocks is not."""


class ThreadSource(Fetching):
    """Asks an iterator in a thread for its next part; see `holdfast.client.sources.Source`."""

    def __init__(self, parts: Iterator[Any]) -> None:
        super().__init__()
        self._parts = parts
        self._wanted: queue.SimpleQueue[asyncio.Future[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_left = False
        self._asked: asyncio.Future[Any] | None = None  # the fetch for which the iterator was asked last

    def fetch(self) -> "asyncio.Future[Any]":
        """Has the thread ask for the next part, unless that is under way."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="holdfast-source", daemon=True)
            self._thread.start()
        if self._fetch is None:
            self._fetch = asyncio.get_running_loop().create_future()
            self._wanted.put(self._fetch)
        return self._fetch

    async def leave(self) -> None:
        """Ends the thread once the iterator lets go of it; what it has not been asked for stays there."""
        with self._lock:
            self._is_left = True
            if self._asked is not self._fetch:
                self._fetch = None
        self._wanted.put(None)
        if self._fetch is not None and not self._fetch.done():
            await asyncio.wait((self._fetch,), timeout=LEAVE_S)

    def _serve(self) -> None:
        while (fetch := self._wanted.get()) is not None:
            with self._lock:
                if self._is_left:
                    return
                self._asked = fetch
            part, error = END, None
            try:
                part = next(self._parts, END)
            except BaseException as raised:  # noqa: BLE001 -- the stream raises it
                error = raised
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and the session with it
                fetch.get_loop().call_soon_threadsafe(_settle, fetch, part, error)


def _settle(fetch: "asyncio.Future[Any]", part: Any, error: BaseException | None) -> None:
    if error is None:
        fetch.set_result(part)
    else:
        fetch.set_exception(error)
