"""Where an event stands in its source, and how a session remembers it. Pure."""

import re
from typing import NamedTuple

MAX_SOURCE_BYTES = 200
"""A cursor has 256 bytes for the name of the source and the place."""


class Place(NamedTuple):
    """Where an event stands: places of one source have the order of its events.

    Attributes:
        first: Milliseconds of a stream's entry id; bytes, or lines, of a file before the event.
        second: Number within the millisecond; 0 in a file.
    """

    first: int
    second: int = 0

    @property
    def sortable(self) -> str:
        """The place as text of one length, so that texts have the order of places."""
        return f"{self.first:020d}-{self.second:020d}"


def place_of(entry: str) -> Place:
    """Reads a place as people write it: "1718000000000-0" or "4096".

    Raises:
        ValueError: It is none.
    """
    first, dash, second = entry.partition("-")
    if not (first.isascii() and first.isdigit() and (second.isdigit() if dash else True)):
        raise ValueError(f"{entry!r} is not an offset in a source, expected 4096 or 1718000000000-0")
    return Place(int(first), int(second or 0))


def check_source_id(source_id: str) -> str:
    """Returns the name of a source.

    Raises:
        ValueError: It is empty or too long for a cursor, or has control characters.
    """
    size = len(source_id.encode())
    if not 1 <= size <= MAX_SOURCE_BYTES or re.search(r"[\x00-\x1f\x7f]", source_id):
        raise ValueError(
            f"the source is named {source_id!r:.80}, {size} bytes, expected 1..{MAX_SOURCE_BYTES} without "
            "control characters; name it by --source-id"
        )
    return source_id


def cursor_of(source_id: str, entry: str) -> bytes:
    """Returns what a session keeps of the last event that was applied to it."""
    return f"{source_id} {entry}".encode()


def entry_in(cursor: bytes) -> str:
    """Returns the place in a cursor as people write it."""
    return cursor.decode(errors="replace").rpartition(" ")[2]


def place_in(cursor: bytes, source_id: str) -> Place | None:
    """Returns up to where a session has applied a source; None if its cursor is of another one.

    Raises:
        ValueError: The cursor is none of a pipe.
    """
    if not cursor:
        return None
    name, space, entry = cursor.decode(errors="replace").rpartition(" ")
    if not space:
        raise ValueError(f"its cursor {cursor!r:.80} was not written by a pipe")
    place = place_of(entry)
    return place if name == source_id else None
