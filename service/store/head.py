"""The head of a record: what can be told of a session without its state. Pure.

A checksum is over all of a record, so a head is not known to be whole: good for a list, and for nothing
else.
"""

import struct
from typing import NamedTuple

from holdfast.history_digest import MAX_NUMBER
from service.store.flag import without_flag
from service.store.record import HEADER, MAGIC, MAX_POSITION, QUARANTINED, REASON_HEADER

HEAD_BYTES = HEADER.size
REASON_BYTES = 1024
"""As much is read of why a session is in quarantine."""


class Head(NamedTuple):
    """The head of a live session's record, or of one in quarantine.

    Attributes:
        incarnation: See `record.Record`, as for the next three.
        position: See there.
        digest: See there.
        fingerprint: See there.
        reason_start: Where in the record it is said why the session is in quarantine; 0 if it is not.
    """

    incarnation: int
    position: int
    digest: int
    fingerprint: bytes
    reason_start: int


def decode_head(data: bytes) -> Head | None:
    """Reads the first `HEAD_BYTES` of a record; None if they are those of a tombstone, or of no record."""
    if len(data) < HEAD_BYTES:
        return None
    header = HEADER.unpack_from(without_flag(data))
    magic, _, _, incarnation, position, digest, _, fingerprint, state_bytes = header
    reason_start = 0
    if position >= QUARANTINED:
        reason_start = HEAD_BYTES + state_bytes
        position -= QUARANTINED
    is_live = 0 <= position <= MAX_POSITION and 0 < incarnation <= MAX_NUMBER and 0 <= digest <= MAX_NUMBER
    if magic != MAGIC or not is_live:
        return None
    return Head(incarnation, position, digest, fingerprint, reason_start)


def decode_reason(data: bytes) -> str:
    """Reads what stands at `Head.reason_start`, as far as it was read; "" if there is nothing."""
    try:
        (size,) = REASON_HEADER.unpack_from(data)
    except struct.error:
        return ""
    return data[REASON_HEADER.size : REASON_HEADER.size + size].decode(errors="replace")
