"""What a pipe says on standard error: a line of progress, and whatever a person should know."""

import asyncio
import sys
import time
from collections.abc import Callable

from holdfast.pipe.flow import Counts
from holdfast.pipe.sources import Source

TERMINAL_S, LOG_S = 1.0, 10.0
"""Between two lines of progress, on a terminal and elsewhere."""


class Progress:
    """The only one who writes to standard error.

    Args:
        is_quiet: Leaves out the progress, not the rest.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty()
        self._has_line = False

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        print(f"{self._erased()}holdfast pipe: {line}", file=sys.stderr, flush=True)

    async def show(self, counts: Callable[[], Counts], source: Source) -> None:
        """Prints how it goes, again and again, until it is cancelled."""
        if self._is_quiet:
            return
        before, before_s = counts().total, time.monotonic()
        while True:
            await asyncio.sleep(TERMINAL_S if self._is_terminal else LOG_S)
            behind = await source.behind()
            total, now_s = counts().total, time.monotonic()
            rate = (total - before) / (now_s - before_s)
            before, before_s = total, now_s
            line = f"{total:,} events, {rate:,.0f}/s" + (f", {behind}" if behind else "")
            if self._is_terminal:
                sys.stderr.write(f"{self._erased()}{line}")
                sys.stderr.flush()
                self._has_line = True
            else:
                self.say(line)

    def summary(self, counts: Counts) -> None:
        """Prints what became of the events."""
        if not self._is_quiet:
            bad = f", {counts.left_out:,} left out" if counts.left_out else ""
            self.say(f"{counts.applied:,} events applied, {counts.repeated:,} done before{bad}")

    def _erased(self) -> str:
        had_line, self._has_line = self._has_line, False
        return "\r\x1b[K" if had_line else ""
