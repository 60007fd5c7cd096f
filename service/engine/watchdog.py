"""Ends runs of a model that take too long. One thread that looks around ten times a second.

It counts its own rounds instead of reading a clock: a process that was stopped, or had no core, has not
looked around either, so its runs are not taken for stalled ones. A run costs an object and a place in a
set.
"""

import threading

from service.common.background import Trouble
from service.model.protocol import Halt

TICK_S = 0.1


class WatchedRun:
    """One run.

    Args:
        halt: Ends it.
        limit_s: How long it may take, to a tick.

    Attributes:
        was_halted: It was told to end.
    """

    __slots__ = ("_halt", "_ticks_left", "was_halted")

    def __init__(self, halt: Halt, limit_s: float) -> None:
        self._halt = halt
        self._ticks_left = max(1, round(limit_s / TICK_S))
        self.was_halted = False

    def tick(self) -> None:
        """Counts a round; ends the run if it was one too many."""
        self._ticks_left -= 1
        if self._ticks_left < 0:
            self.halt()

    def halt(self) -> None:
        """Ends the run."""
        self.was_halted = True
        self._halt.terminate = True


class Watchdog:
    """Watches runs, whichever thread they are in. Starts its thread at once; `close` ends it."""

    def __init__(self) -> None:
        self._runs: set[WatchedRun] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin(self, halt: Halt, limit_s: float) -> WatchedRun:
        """Watches a run until `end`."""
        run = WatchedRun(halt, limit_s)
        self._runs.add(run)
        return run

    def end(self, run: WatchedRun) -> None:
        """The run is over."""
        self._runs.discard(run)

    def close(self) -> None:
        """Ends the thread and the runs under way."""
        self._closing.set()
        self._thread.join()
        for run in tuple(self._runs):
            run.halt()

    def _watch(self) -> None:
        trouble = Trouble("watchdog")
        while not self._closing.wait(TICK_S):
            for run in tuple(self._runs):
                with trouble:
                    run.tick()
