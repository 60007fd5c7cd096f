"""What every screen of the demo is: something drawn again and again in a terminal, with events below.

Without a terminal it prints a line now and then instead.
"""

import io
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

PICTURE_WIDTH = 100
LINES = 20
_BLOCKS = " ▁▂▃▄▅▆▇█"


class LiveScreen(ABC):
    """Shows a stream as it is served.

    Args:
        total: Tokens to come; 0 if nobody knows.
        unit: What a token is, in the plural.
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total = total
        self._unit = unit
        self._count = 0
        self._shown_lines = 0
        self._events: list[str] = []
        self._started_s = time.monotonic()
        self._live = Live(refresh_per_second=12) if sys.stdout.isatty() else None

    def __enter__(self) -> Self:
        """Starts to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops."""
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def event(self, text: str) -> None:
        """Shows something that happened."""
        self._events.append(text)
        if self._live is None:
            print(text, flush=True)
        else:
            self._live.update(self._render())

    def save_picture(self, path: Path, verdict: str) -> None:
        """Writes what is shown now, with the verdict below, as SVG."""
        console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(self._render(), Text(verdict, "bold green"), sep="\n")
        console.save_svg(str(path), title="holdfast demo")

    @abstractmethod
    def body(self) -> Sequence[RenderableType]:
        """Returns what stands above the figures."""

    @abstractmethod
    def figures(self) -> str:
        """Returns how the network does, once there are tokens."""

    def _counted(self, tokens: int) -> None:
        """Shows that so many tokens more were served."""
        self._count += tokens
        if self._live is not None:
            self._live.update(self._render())
            return
        due = self._count * LINES // self._total if self._total else self._count
        if due > self._shown_lines:
            self._shown_lines = due
            print(self._status(), flush=True)

    def _status(self) -> str:
        rate = self._count / (time.monotonic() - self._started_s)
        of = f"/{self._total}" if self._total else ""
        return f"{self._count}{of} {self._unit}   {self.figures()}   {rate:.0f} tokens/s"

    def _render(self) -> Group:
        status = Text(self._status() if self._count else "waiting")
        return Group(*self.body(), status, Text("\n".join(self._events), "bold magenta"))


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Returns a bar of eighths for each value; `low` is empty, `high` is full."""
    span = max(high - low, 1e-9)
    return "".join(_BLOCKS[min(8, max(0, round(8 * (value - low) / span)))] for value in values)


def verdict(text: str, *, is_good: bool) -> None:
    """Prints the last line."""
    Console(highlight=False, soft_wrap=True).print(Text(text, "bold green" if is_good else "bold red"))
