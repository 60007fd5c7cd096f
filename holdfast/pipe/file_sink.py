"""Records as lines of a file, or on standard output.

A file is the memory of what was written: it is read when it is opened, and a last line without an end,
which a process was writing when it was killed, is cut off.
"""

import asyncio
import csv
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.pipe.failures import EndFailed
from holdfast.pipe.places import Place, place_of
from holdfast.pipe.records import Written, to_csv, to_json


class FileSink:
    """A file of JSON lines or CSV that nobody else writes to. Begun anew, or continued.

    Args:
        path: Of the file.
        layout: "jsonl" or "csv".
        columns: Of CSV.
        source_id: Only records of this source tell what was written of it.
        is_synced: Wait until records are on the disk: they outlive a loss of power, too.

    Raises:
        OSError: It cannot be opened, or somebody else writes to it.
        ValueError: It holds something else than records, or other columns.
    """

    def __init__(
        self, path: Path, layout: str, columns: Sequence[str], source_id: str, *, is_synced: bool
    ) -> None:
        self._path = path
        self._layout = layout
        self._columns = columns
        self._source_id = source_id
        self._is_synced = is_synced
        self._last: dict[str, Place] = {}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._size = self._open()
        except BaseException:
            os.close(self._descriptor)
            raise

    async def last(self, key: str) -> Place | None:
        """Does what `Sink.last` says."""
        return self._last.get(key)

    async def write(self, records: Sequence[Written]) -> None:
        """Does what `Sink.write` says."""
        lines = []
        for key, place, record in records:
            if (last := self._last.get(key)) is None or last < place:
                lines.append(self._line(record))
                self._last[key] = place
        try:
            self._append("".join(lines))
            if self._is_synced:
                await asyncio.to_thread(os.fdatasync, self._descriptor)
        except OSError as error:
            raise EndFailed(f"{self._path}: {(error.strerror or str(error)).lower()}") from error

    async def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        """Finds out what the file holds; returns the bytes of it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{self._path}: somebody else writes to it") from None
        size = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    size += len(line)
                    self._remember(number, line.decode(errors="surrogateescape"))
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        self._size = size
        if not size and self._layout == "csv":
            self._append(to_csv(self._columns))
        return self._size

    def _remember(self, number: int, line: str) -> None:
        try:
            record = self._record(number, line)
            if record is not None and record["source"] == self._source_id:
                entry = record["entry"]
                key = record.get("session", f"entry {entry}")
                self._last[key] = place_of(entry)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{self._path}, line {number}: it is not a record of a pipe ({error}); give the pipe "
                "a file of its own"
            ) from None

    def _record(self, number: int, line: str) -> Mapping[str, Any] | None:
        """Returns what a line holds; None for the names of columns."""
        if self._layout == "jsonl":
            record: dict[str, Any] = json.loads(line)
            return record
        values = next(csv.reader([line], strict=True))
        if number > 1:
            return dict(zip(self._columns, values, strict=True))
        if tuple(values) != tuple(self._columns):
            raise ValueError(f"the columns are {', '.join(values)}, expected {', '.join(self._columns)}")
        return None

    def _line(self, record: Mapping[str, Any]) -> str:
        if self._layout == "jsonl":
            return to_json(record) + "\n"
        return to_csv(record.get(name) for name in self._columns)

    def _append(self, text: str) -> None:
        """Appends lines, all or none of them."""
        data = memoryview(text.encode(errors="backslashreplace"))
        at = 0
        try:
            while at < len(data):
                at += os.write(self._descriptor, data[at:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(data)


class OutSink:
    """Standard output, which cannot be read back: the last record of each session may come twice.

    Args:
        layout: "jsonl" or "csv".
        columns: Of CSV.
    """

    def __init__(self, layout: str, columns: Sequence[str]) -> None:
        self._layout = layout
        self._columns = columns
        self._has_begun = layout != "csv"

    async def last(self, key: str) -> Place | None:
        """Knows nothing."""
        return None

    async def write(self, records: Sequence[Written]) -> None:
        """Does what `Sink.write` says, as far as it can."""
        lines = [] if self._has_begun else [to_csv(self._columns)]
        self._has_begun = True
        for _, _, record in records:
            is_json = self._layout == "jsonl"
            values = (record.get(name) for name in self._columns)
            lines.append(to_json(record) + "\n" if is_json else to_csv(values))
        data = memoryview("".join(lines).encode(errors="backslashreplace"))
        await asyncio.to_thread(_write_all, 1, data)

    async def close(self) -> None:
        """Does nothing."""


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
