"""Packs calls of the commit script as RESP requests. Pure.

The records of a batch mostly have one size. Their arguments then differ in the bytes and never in the
framing, so they are laid into one matrix instead of being packed one by one, at a third of the time.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.protocol import Writes
from service.store.record import NO_STAMP

SCRIPT = files(__package__).joinpath("commit.lua").read_bytes()
SCRIPT_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

Buffer = bytes | memoryview

_STAMP_BYTES = len(NO_STAMP)
_MATRIX_PAYS = 8
"""Fewer records than this are packed faster one by one."""


class Call(NamedTuple):
    """A packed command about keys of one node.

    Attributes:
        key: The first of them.
        request: In pieces.
    """

    key: bytes
    request: Sequence[Buffer]


def pack_together(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Call]:
    """Returns one call for all records, `command script n key... ttl (stamp record)...`.

    Args:
        command: EVAL or EVALSHA.
        script: The script, or its hash.
        writes: Records of distinct keys; n of them together.
        ttl_ms: Their time to live.
    """
    keys: list[bytes] = []
    for part in writes:
        keys += part.keys
    count, ttl = b"%d" % len(keys), b"%d" % ttl_ms
    head = (4 + 3 * len(keys), len(command), command, len(script), script, len(count), count)
    text = [b"*%d\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % head]
    text += [b"$%d\r\n%s\r\n" % (len(key), key) for key in keys]
    text.append(b"$%d\r\n%s\r\n" % (len(ttl), ttl))
    pieces: list[Buffer] = []
    for part in writes:
        if isinstance(part.records, np.ndarray) and len(part.records) >= _MATRIX_PAYS:
            pieces += (b"".join(text), _frame(part.expected, part.records))
            text.clear()
            continue
        starts = range(0, len(part.expected), _STAMP_BYTES)
        for start, record in zip(starts, part.records, strict=True):
            stamp = part.expected[start : start + _STAMP_BYTES]
            text += (b"$%d\r\n%s\r\n$%d\r\n" % (len(stamp), stamp, len(record)), bytes(record), b"\r\n")
    if text:
        pieces.append(b"".join(text))
    return [Call(keys[0], pieces)]


def pack_each(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Call]:
    """Returns a call `command script 1 key ttl stamp record` for each record; arguments as above."""
    head = b"*7\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$1\r\n1\r\n" % (len(command), command, len(script), script)
    ttl = b"$%d\r\n%d\r\n$%d\r\n" % (len(b"%d" % ttl_ms), ttl_ms, _STAMP_BYTES)
    calls = []
    for part in writes:
        stamps, starts = part.expected, range(0, len(part.expected), _STAMP_BYTES)
        for key, start, row in zip(part.keys, starts, part.records, strict=True):
            record = bytes(row)
            sizes = (len(key), key, ttl, stamps[start : start + _STAMP_BYTES], len(record), record)
            calls.append(Call(key, (head + b"$%d\r\n%s\r\n%s%s\r\n$%d\r\n%s\r\n" % sizes,)))
    return calls


def _frame(expected: bytes, records: NDArray[np.uint8]) -> memoryview:
    """Returns the two arguments of each record, B times the bytes of both."""
    count, size = records.shape
    before, between = b"$%d\r\n" % _STAMP_BYTES, b"\r\n$%d\r\n" % size
    stamp_end = len(before) + _STAMP_BYTES
    record_start = stamp_end + len(between)
    framed = np.empty((count, record_start + size + 2), np.uint8)
    framed[:, :record_start] = np.frombuffer(before + NO_STAMP + between, np.uint8)
    framed[:, len(before) : stamp_end] = np.frombuffer(expected, np.uint8).reshape(count, _STAMP_BYTES)
    framed[:, record_start:-2] = records
    framed[:, -2:] = (13, 10)
    return framed.data.cast("B")
