"""Cuts a stream of bytes into pieces that can be tokenised one by one, whatever chunks it comes in. Pure.

A piece ends where white space begins: before a space, tab, line feed or carriage return that follows what
is no white space, of Unicode's either. It is finished when this byte comes, since nothing that comes later
moves its end. One that has `MAX_PIECE_BYTES` is finished by the next byte anyway, without dividing a
character.
"""

import re
from itertools import chain
from typing import NamedTuple

MAX_PIECE_BYTES = 64

_BOUNDARY = re.compile(
    rb"(?<=[^\t-\r\x1c- ])(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])"
    rb"(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)(?=[\t\n\r ])"
)
_MOST_CONTINUED = 3
"""Bytes of a character after its first one."""


class Finished(NamedTuple):
    """A piece that has ended.

    Attributes:
        piece: Its bytes, 1..64.
        place: Of the byte that finished it, counted in the new bytes; this byte is not part of it.
    """

    piece: bytes
    place: int


def cut(held: bytes, new: bytes) -> tuple[list[Finished], bytes]:
    """Cuts what has come.

    Args:
        held: The unfinished piece so far, at most `MAX_PIECE_BYTES`.
        new: The bytes that follow it.

    Returns:
        What they finish, in order, and the piece that is unfinished then.
    """
    text = held + new
    finished = []
    start = 0
    for end in chain((found.start() for found in _BOUNDARY.finditer(text)), [len(text)]):
        while end - start > MAX_PIECE_BYTES:
            stop = _before_character(text, start + MAX_PIECE_BYTES)
            finished.append(Finished(text[start:stop], start + MAX_PIECE_BYTES - len(held)))
            start = stop
        if end < len(text):
            finished.append(Finished(text[start:end], end - len(held)))
            start = end
    return finished, text[start:]


def _before_character(text: bytes, place: int) -> int:
    """Returns where the character at a place begins; the place itself where the bytes are none."""
    for back in range(_MOST_CONTINUED + 1):
        if text[place - back] & 0xC0 != 0x80:
            return place - back
    return place
