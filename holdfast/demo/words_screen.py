"""The demo of `docstring-words`: a text as it arrives, and the words that the network expects next."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.demo.live import sparkline
from holdfast.demo.screen import last_lines, printable
from holdfast.demo.shown import Shown
from model_export.docstrings import held_out_docstrings

DEFAULT_BYTES = 1200
_SHOWN_CHARS = 1200
_CANDIDATES = 5
_BAR_WIDTH = 40
_STYLES = ((1.0, "green"), (4.0, "white"), (8.0, "yellow"))
"""By bits that a byte cost."""

_COSTLY = "red"


class WordsScreen(Shown):
    """Shows docstrings that the network never saw, or a file."""

    model = "docstring-words"
    outputs = ("logits", "token_log_prob")
    chunk = 3

    def __init__(self, limit: int | None, file: Path | None) -> None:
        count = limit or DEFAULT_BYTES
        data = file.read_bytes() if file is not None else max(held_out_docstrings(), key=_size).data
        self.tokens = data[:count]
        self._shown: deque[tuple[str, str]] = deque(maxlen=_SHOWN_CHARS)
        self._waiting = ""
        self._best: list[tuple[int, float]] = []
        self._nats = 0.0
        self.start(len(self.tokens), "bytes")

    def show(self, outputs: Mapping[str, NDArray[Any]], count: int) -> None:
        """See `Shown`. A piece takes its colour when it has ended, by what it cost."""
        for place in range(count):
            log_prob = float(outputs["token_log_prob"][place])
            if log_prob:
                self._nats -= log_prob
                self._colour(-log_prob / math.log(2))
            byte = self.tokens[self._count + place]
            assert isinstance(byte, int)
            self._waiting += printable(byte)
        logits = outputs["logits"][-1].astype(np.float64)
        weights = np.exp(logits - logits.max())
        shares = weights / weights.sum()
        self._best = [
            (int(entry), float(shares[entry])) for entry in shares.argsort()[: -_CANDIDATES - 1 : -1]
        ]
        self._counted(count)

    def body(self) -> Sequence[RenderableType]:
        """Returns the text and the candidates."""
        table = Table.grid(padding=(0, 1))
        for entry, share in self._best:
            full = int(share * _BAR_WIDTH)
            bar = "█" * full + sparkline([share * _BAR_WIDTH - full], 0.0, 1.0)
            table.add_row(Text(repr(self.labels[entry]), "bold"), Text(bar, "cyan"), f"{share:4.0%}")
        text = deque([*self._shown, *((letter, "dim") for letter in self._waiting)], _SHOWN_CHARS)
        title = "a text, coloured by what each word cost; dim: not ended, so not yet tokenised"
        return [
            Panel(last_lines(text), title=title),
            Text("next after the last word that has ended"),
            table,
        ]

    def figures(self) -> str:
        """Returns the bits per byte."""
        return f"{self._nats / math.log(2) / self._count:.2f} bits/byte"

    def _colour(self, bits: float) -> None:
        per_byte = bits / max(1, len(self._waiting))
        style = next((style for most, style in _STYLES if per_byte <= most), _COSTLY)
        self._shown.extend((letter, style) for letter in self._waiting)
        self._waiting = ""


def _size(file: Any) -> int:
    return len(file.data)
