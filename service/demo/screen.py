"""What the demo shows: the text coloured by surprise, the likeliest next bytes, the figures.

Without a terminal it prints a line now and then instead.
"""

import io
import math
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

SHOWN_CHARS = 1400
PICTURE_WIDTH = 100
LINES = 20
BITS = 1 / math.log(2)

_COLOURS = ((1.0, "grey62"), (3.0, "green"), (6.0, "yellow"), (10.0, "dark_orange"))
_MOST_SURPRISING = "bold red"


class Screen:
    """Shows a stream of bytes as it is served.

    Args:
        title: Over the text.
        total: Bytes to come; 0 if nobody knows.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._shown: deque[tuple[str, str]] = deque(maxlen=SHOWN_CHARS)
        self._count = 0
        self._bits = 0.0
        self._bits_without = 0.0
        self._top: list[tuple[int, float]] = []
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

    def add(self, byte: int, log_prob: float, without: float, top: list[tuple[int, float]]) -> None:
        """Shows one byte.

        Args:
            byte: The byte.
            log_prob: Its log-probability with memory.
            without: Its log-probability without memory.
            top: Likeliest next bytes with their log-probabilities.
        """
        surprise = -log_prob * BITS
        self._shown.append((_printable(byte), _colour(surprise)))
        self._count += 1
        self._bits += surprise
        self._bits_without -= without * BITS
        self._top = top
        if self._live is not None:
            self._live.update(self._render())
        elif self._count % max(1, self._total // LINES) == 0:
            print(self._figures(), flush=True)

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

    def _figures(self) -> str:
        rate = self._count / (time.monotonic() - self._started_s)
        of = f"/{self._total}" if self._total else ""
        return (
            f"{self._count}{of} bytes   bits/byte with memory {self._bits / self._count:.2f}, "
            f"without {self._bits_without / self._count:.2f}   {rate:.0f} tokens/s"
        )

    def _render(self) -> Group:
        text = Text()
        for char, colour in self._shown:
            text.append(char, colour)
        lines = "".join(char for char, _ in self._shown).count("\n")
        if lines > LINES:
            text = Text("\n").join(text.split("\n")[-LINES:])
        figures = Text(self._figures() if self._count else "waiting")
        events = Text("\n".join(self._events), "bold magenta")
        return Group(Panel(text, title=self._title), self._guesses(), figures, events)

    def _guesses(self) -> Table:
        table = Table.grid(padding=(0, 2))
        guesses = (f"{_name(token)} {math.exp(log_prob):4.0%}" for token, log_prob in self._top)
        table.add_row("next:", *guesses)
        return table


def verdict(text: str, *, is_good: bool) -> None:
    """Prints the last line."""
    Console(highlight=False, soft_wrap=True).print(Text(text, "bold green" if is_good else "bold red"))


def _colour(surprise_bits: float) -> str:
    return next((name for limit, name in _COLOURS if surprise_bits < limit), _MOST_SURPRISING)


def _printable(byte: int) -> str:
    char = chr(byte)
    return char if char == "\n" or 32 <= byte < 127 else "·"


def _name(byte: int) -> str:
    return {10: "⏎", 32: "␣", 9: "⇥"}.get(byte, _printable(byte))
