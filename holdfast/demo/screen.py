"""What the demo of text shows: the text coloured by surprise, the likeliest next bytes, the figures."""

import math
from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.demo.live import LINES, LiveScreen

SHOWN_CHARS = 1400
BITS = 1 / math.log(2)

_COLOURS = ((1.0, "grey62"), (3.0, "green"), (6.0, "yellow"), (10.0, "dark_orange"))
_MOST_SURPRISING = "bold red"


class Screen(LiveScreen):
    """Shows a stream of bytes as it is served.

    Args:
        title: Over the text.
        total: Bytes to come; 0 if nobody knows.
    """

    def __init__(self, title: str, total: int) -> None:
        super().__init__(total, "bytes")
        self._title = title
        self._shown: deque[tuple[str, str]] = deque(maxlen=SHOWN_CHARS)
        self._bits = 0.0
        self._bits_without = 0.0
        self._top: list[tuple[int, float]] = []

    def add(self, byte: int, log_prob: float, without: float, top: list[tuple[int, float]]) -> None:
        """Shows one byte.

        Args:
            byte: The byte.
            log_prob: Its log-probability with memory.
            without: Its log-probability without memory.
            top: Likeliest next bytes with their log-probabilities.
        """
        surprise = -log_prob * BITS
        self._shown.append((printable(byte), _colour(surprise)))
        self._bits += surprise
        self._bits_without -= without * BITS
        self._top = top
        self._counted(1)

    def body(self) -> Sequence[RenderableType]:
        """Returns the text and the guesses."""
        return [Panel(last_lines(self._shown), title=self._title), self._guesses()]

    def figures(self) -> str:
        """Returns bits per byte with memory and without."""
        return (
            f"bits/byte with memory {self._bits / self._count:.2f}, "
            f"without {self._bits_without / self._count:.2f}"
        )

    def _guesses(self) -> Table:
        table = Table.grid(padding=(0, 2))
        guesses = (f"{_name(token)} {math.exp(log_prob):4.0%}" for token, log_prob in self._top)
        table.add_row("next:", *guesses)
        return table


def last_lines(shown: Iterable[tuple[str, str]]) -> Text:
    """Returns characters with their colours, the last lines of them."""
    text = Text()
    for char, colour in shown:
        text.append(char, colour)
    return Text("\n").join(text.split("\n")[-LINES:])


def printable(byte: int) -> str:
    """Returns what stands for a byte."""
    char = chr(byte)
    return char if char == "\n" or 32 <= byte < 127 else "·"


def _colour(surprise_bits: float) -> str:
    return next((name for limit, name in _COLOURS if surprise_bits < limit), _MOST_SURPRISING)


def _name(byte: int) -> str:
    return {10: "⏎", 32: "␣", 9: "⇥"}.get(byte, printable(byte))
