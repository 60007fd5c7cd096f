"""Packs the call of a script with the records of a batch as RESP requests. Pure.

The records of a batch mostly have one size. Their arguments then differ in the bytes and never in the
framing, so they are laid into one matrix instead of being packed one by one, at a third of the time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.store.protocol import Writes
from service.store.record import NO_STAMP

Buffer = bytes | memoryview

_STAMP_BYTES = len(NO_STAMP)
_MATRIX_PAYS = 8
"""Fewer records than this are packed faster one by one."""


def pack_script(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Buffer]:
    """Returns the request `command script n key... ttl (stamp record)...`, in pieces.

    Args:
        command: EVAL or EVALSHA.
        script: The script, or its hash.
        writes: Records of distinct keys; n of them together.
        ttl_ms: Their time to live.
    """
    count = sum(len(part.keys) for part in writes)
    head = [b"*%d\r\n" % (4 + 3 * count), _bulk(command), _bulk(script), _bulk(b"%d" % count)]
    keys = [_bulk(key) for part in writes for key in part.keys]
    pieces: list[Buffer] = [b"".join((*head, *keys, _bulk(b"%d" % ttl_ms)))]
    pieces += [_arguments(part) for part in writes]
    return pieces


def pack_scripts(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[bytes]:
    """Returns a request `command script 1 key ttl stamp record` for each record; arguments as above."""
    head = b"*7\r\n" + _bulk(command) + _bulk(script) + _bulk(b"1")
    ttl = _bulk(b"%d" % ttl_ms) + b"$%d\r\n" % _STAMP_BYTES
    requests = []
    for part in writes:
        stamps, starts = part.expected, range(0, len(part.expected), _STAMP_BYTES)
        for key, start, row in zip(part.keys, starts, part.records, strict=True):
            record = bytes(row)
            sizes = (len(key), key, ttl, stamps[start : start + _STAMP_BYTES], len(record), record)
            requests.append(head + b"$%d\r\n%s\r\n%s%s\r\n$%d\r\n%s\r\n" % sizes)
    return requests


def _arguments(writes: Writes) -> Buffer:
    if isinstance(writes.records, np.ndarray) and len(writes.records) >= _MATRIX_PAYS:
        return _frame(writes.expected, writes.records).data.cast("B")
    starts = range(0, len(writes.expected), _STAMP_BYTES)
    stamps = [writes.expected[start : start + _STAMP_BYTES] for start in starts]
    return b"".join(
        [
            _bulk(argument)
            for stamp, record in zip(stamps, writes.records, strict=True)
            for argument in (stamp, bytes(record))
        ]
    )


def _frame(expected: bytes, records: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the two arguments of each record, (B, bytes of both)."""
    count, size = records.shape
    before, between = b"$%d\r\n" % _STAMP_BYTES, b"\r\n$%d\r\n" % size
    stamp_end = len(before) + _STAMP_BYTES
    record_start = stamp_end + len(between)
    framed = np.empty((count, record_start + size + 2), np.uint8)
    framed[:, :record_start] = np.frombuffer(before + NO_STAMP + between, np.uint8)
    framed[:, len(before) : stamp_end] = np.frombuffer(expected, np.uint8).reshape(count, _STAMP_BYTES)
    framed[:, record_start:-2] = records
    framed[:, -2:] = (13, 10)
    return framed


def _bulk(argument: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(argument), argument)
