"""Decides whether a batch waits for more chunks, and waits.

A batch costs the event loop a few hundred microseconds whether it is small or large, and so do requests
on their way in. On a loop with time to spare a batch leaves at once. On a busy one small batches starve
the requests that would make them larger: 64 unary callers then run one by one, at a third of the speed.
So a batch waits only where waiting pays: the loop is hardly ever idle, and sessions that were answered a
moment ago have not come back yet.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Iterable

from service.engine.core import Core

BUSY_SHARE = 0.75
"""Share of the time, see `Window.busy_s`, from which the loop counts as busy."""

SAMPLE_S = 0.02
"""Shortest stretch over which that share is taken."""

RETURN_S = 0.005
"""A session that was answered so long ago is not waited for."""

MAX_WAIT_S = 0.004
"""Longest wait of a batch."""

QUIET_S = 0.001
"""A batch goes when no chunk has come for so long."""

_SCHEDSTAT = "/proc/thread-self/schedstat"
"""Linux: nanoseconds on a core, nanoseconds waiting for one, turns."""


class Window:
    """What is known of the load. Made in the thread of the event loop, whose time it reads.

    Attributes:
        arrival_count: Chunks that have come so far.
        is_busy: The loop was, when last looked at.
    """

    def __init__(self) -> None:
        self.arrival_count = 0
        self._answered_s: OrderedDict[bytes, float] = OrderedDict()  # oldest first
        self.is_busy = False
        self._sampled_s = 0.0
        self._sampled_busy_s = 0.0
        try:
            self._file: int | None = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._file = None

    def came(self, key: bytes) -> None:
        """A chunk of a session has come."""
        self.arrival_count += 1
        self._answered_s.pop(key, None)

    def answered(self, keys: Iterable[bytes], now_s: float) -> None:
        """Sessions were answered, and may come back soon."""
        answered_s = self._answered_s
        for key in keys:
            answered_s[key] = now_s
            answered_s.move_to_end(key)
        while answered_s and now_s - next(iter(answered_s.values())) >= RETURN_S:
            answered_s.popitem(last=False)

    def sample(self, now_s: float) -> bool:
        """Looks how long the loop was busy since the last look, if not a moment ago; returns `is_busy`."""
        elapsed_s = now_s - self._sampled_s
        if elapsed_s >= SAMPLE_S:
            busy_s = self.busy_s()
            self.is_busy = busy_s - self._sampled_busy_s >= BUSY_SHARE * elapsed_s
            self._sampled_s, self._sampled_busy_s = now_s, busy_s
        return self.is_busy

    def expects_more(self, now_s: float) -> bool:
        """Tells whether it pays to wait."""
        if not self.is_busy or not self._answered_s:
            return False
        return now_s - next(reversed(self._answered_s.values())) < RETURN_S

    async def gather(self, core: Core, now_s: float) -> None:
        """Waits for more chunks where it pays, until a batch is full, or none has come for a moment."""
        until_s = now_s + MAX_WAIT_S
        while not core.is_full and self.expects_more(now_s):
            count = self.arrival_count
            await asyncio.sleep(QUIET_S)
            now_s = time.monotonic()
            if self.arrival_count == count or now_s >= until_s:
                return

    def busy_s(self) -> float:
        """Returns how long the loop has been busy: on a core, or waiting for one that others use; 2 us.

        Where the kernel does not count the waiting, CPU time is all there is, and a loop that shares its
        core looks less busy than it is. Zero is some moment in the past.
        """
        if self._file is None:
            return time.thread_time()
        try:
            running_ns, waiting_ns, _ = os.pread(self._file, 64, 0).split()
            return (int(running_ns) + int(waiting_ns)) * 1e-9
        except (OSError, ValueError):  # a clock that is only less exact must not stop an engine
            self.close()
            return time.thread_time()

    def close(self) -> None:
        """Gives the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
