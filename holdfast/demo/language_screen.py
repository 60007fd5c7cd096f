"""The demo of `code-language`: bytes coloured by what they were taken for, and a bar for each language."""

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
from model_export.data.sources import LANGUAGES, held_out_files

DEFAULT_BYTES = 4000
_SHOWN_LANGUAGES = ("python", "c++", "rst", "protobuf", "cython")
"""Of which every server has files."""

_PASSAGE = 500
"""Bytes of a language before the stream turns to the next."""

_SHOWN_CHARS = 1200
_BAR_WIDTH = 40
_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "dark_orange", "white")


class LanguageScreen(Shown):
    """Shows held-out files of some languages, one after the other, or a file."""

    model = "code-language"
    outputs = ("language",)
    chunk = 8

    def __init__(self, limit: int | None, file: Path | None) -> None:
        passages = _passages() if file is None else [(None, file.read_bytes())]
        data = b"".join(passage for _, passage in passages)
        count = limit or DEFAULT_BYTES
        if file is None:
            data = (data * (count // len(data) + 1))[:count]
        self.tokens = data[:count]
        truth = [language for language, passage in passages for _ in passage]
        self._truth = [truth[index % len(truth)] for index in range(len(self.tokens))]
        self._shown: deque[tuple[str, str]] = deque(maxlen=_SHOWN_CHARS)
        self._probabilities = np.full(len(LANGUAGES), 1 / len(LANGUAGES))
        self._judged = self._right = 0
        self.start(len(self.tokens), "bytes")

    def show(self, outputs: Mapping[str, NDArray[Any]], count: int) -> None:
        """See `Shown`."""
        logits = outputs["language"].reshape(-1, len(LANGUAGES))[-1].astype(np.float64)
        weights = np.exp(logits - logits.max())
        self._probabilities = weights / weights.sum()
        guess = int(logits.argmax())
        for byte in self.tokens[self._count : self._count + count]:
            assert isinstance(byte, int)
            self._shown.append((printable(byte), _COLOURS[guess]))
        truth = self._truth[self._count + count - 1]
        if truth is not None:
            self._judged += 1
            self._right += truth == LANGUAGES[guess]
        self._counted(count)

    def body(self) -> Sequence[RenderableType]:
        """Returns the text and the bars."""
        table = Table.grid(padding=(0, 1))
        for name, share, colour in zip(LANGUAGES, self._probabilities, _COLOURS, strict=True):
            full = int(share * _BAR_WIDTH)
            bar = "█" * full + sparkline([share * _BAR_WIDTH - full], 0.0, 1.0)
            table.add_row(Text(name, "bold"), Text(bar, colour), f"{share:4.0%}")
        return [
            Panel(last_lines(self._shown), title="bytes, coloured by the language they seem to be in"),
            table,
        ]

    def figures(self) -> str:
        """Returns how often the language was right, or what it is now."""
        if self._judged:
            return f"right after {self._right / self._judged:.0%} of the chunks"
        return f"now {LANGUAGES[int(self._probabilities.argmax())]}"


def _passages() -> list[tuple[str | None, bytes]]:
    """Returns a passage of each language shown, from files that the network never saw."""
    found: list[tuple[str | None, bytes]] = []
    for name in _SHOWN_LANGUAGES:
        long_enough = [file.data for file in held_out_files(name) if len(file.data) >= 2 * _PASSAGE]
        if long_enough:
            found.append((name, long_enough[0][_PASSAGE : 2 * _PASSAGE]))
    return found
