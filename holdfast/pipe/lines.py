"""Events from a file or from standard input, as lines of JSON or as CSV.

The place of an event is the number of bytes before it. Bytes that are no UTF-8 become lone surrogates,
which `events` refuses where it matters.
"""

import asyncio
import csv
import json
import os
import select
from collections.abc import Iterator, Sequence
from typing import Any

from holdfast.pipe.events import Raw
from holdfast.pipe.failures import EndFailed
from holdfast.pipe.places import Place

BLOCK_BYTES = 1 << 18
LOOK_UP_S = 0.2
"""So often a thread that waits for standard input looks whether it is still wanted."""


class _Lines:
    """The lines of a descriptor, and where they begin."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._block, self._at = b"", 0
        self._is_at_end = False
        self.offset = 0
        self.is_wanted = True

    def __iter__(self) -> Iterator[str]:
        """Returns itself."""
        return self

    def __next__(self) -> str:
        """Returns the next line with its end; waits for it."""
        while (end := self._block.find(b"\n", self._at)) < 0 and not self._is_at_end:
            self._read()
        line = self._block[self._at : end + 1 if end >= 0 else None]
        if not line:
            raise StopIteration
        self._at += len(line)
        self.offset += len(line)
        return line.decode(errors="surrogateescape")

    @property
    def has_line(self) -> bool:
        """Whether the next line is there without a wait."""
        return self._block.find(b"\n", self._at) >= 0

    def _read(self) -> None:
        while self.is_wanted and not select.select([self._descriptor], [], [], LOOK_UP_S)[0]:
            pass
        read = os.read(self._descriptor, BLOCK_BYTES) if self.is_wanted else b""
        self._block, self._at = self._block[self._at :] + read, 0
        self._is_at_end = not read


class LineSource:
    """Events from a descriptor that is read from where it stands to its end.

    Args:
        descriptor: Of a file, a pipe or a terminal; closed by `close`.
        source_id: Names it in cursors.
        layout: "jsonl" or "csv"; CSV begins with a line of names.
    """

    def __init__(self, descriptor: int, source_id: str, layout: str) -> None:
        self.source_id = source_id
        self._descriptor = descriptor
        self._lines = _Lines(descriptor)
        self._events = self._json() if layout == "jsonl" else self._csv()

    async def read(self, most: int) -> Sequence[Raw] | None:
        """Does what `Source.read` says."""
        return await asyncio.to_thread(self._next, most)

    async def done(self, entries: Sequence[str]) -> None:
        """Does nothing: sessions remember what is done."""

    async def behind(self) -> str:
        """Returns the bytes left of a file."""
        size = os.fstat(self._descriptor).st_size
        left = size - self._lines.offset
        return f"{left / 1e6:,.1f} MB behind" if size else ""

    async def close(self) -> None:
        """Lets go of the descriptor, once no thread reads it."""
        self._lines.is_wanted = False

    def _next(self, most: int) -> list[Raw] | None:
        found: list[Raw] = []
        while len(found) < most and (not found or self._lines.has_line):
            event = next(self._events, None)
            if event is None:
                return found or None
            found.append(event)
        return found

    def _json(self) -> Iterator[Raw]:
        while True:
            place = Place(self._lines.offset)
            line = next(self._lines, None)
            if line is None:
                return
            if line.isspace():
                continue
            try:
                value = json.loads(line.removeprefix("\ufeff"))
                problem = (
                    "" if isinstance(value, dict) else f"the line is {line.strip():.80}, expected an object"
                )
            except (ValueError, RecursionError) as error:
                value, problem = None, f"the line is not JSON: {error}"
            if problem:
                yield Raw(place, str(place.first), None, problem, line.rstrip("\r\n"))
            else:
                yield Raw(place, str(place.first), value)

    def _csv(self) -> Iterator[Raw]:
        rows = csv.reader(self._lines, strict=True)
        names: list[str] | None = None
        while True:
            place = Place(self._lines.offset)
            row, problem = _next_row(rows)
            if row is None and not problem:
                return
            if row == []:
                continue
            if names is None:
                if row is None:
                    raise EndFailed(f"the first line of {self.source_id} is not CSV: {problem}")
                names = [name.removeprefix("\ufeff") for name in row]
                continue
            if row is not None and len(row) != len(names):
                problem = f"the line has {len(row)} fields, expected {len(names)} as in the first line"
            fields = None if problem else dict(zip(names, row or (), strict=True))
            yield Raw(place, str(place.first), fields, problem, row if problem else None)


def _next_row(rows: Any) -> tuple[list[str] | None, str]:
    """Returns the next row, or why it is none; neither at the end."""
    try:
        return next(rows, None), ""
    except csv.Error as error:
        return None, f"the line is not CSV: {error}"
