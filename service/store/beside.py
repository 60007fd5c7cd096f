"""What lies beside a record, in the hash that `keys.sibling_key` names: a cursor and checkpoints. Pure.

The field `cursor` has the cursor as it was given. The field `checkpoint:NAME` has, little-endian:

    bytes  what
    8      milliseconds since 1970 by the store's clock at which it was saved
    2      bytes of the cursor, then the cursor
    ...    the record, as it was stored
"""

import struct
from typing import NamedTuple

from holdfast.errors import RecordCorrupt
from service.store.record import MAX_POSITION, STAMP_END, Record, decode, stamp_of

MAX_CURSOR_BYTES = 256
"""A cursor is the caller's, and opaque: the place in a file or a topic is shorter."""

_PREFIX = struct.Struct("<QH")
_FIELD = b"checkpoint:"


class CheckpointHead(NamedTuple):
    """What is known of a checkpoint without its state.

    Attributes:
        name: Its name.
        position: Tokens consumed there.
        digest: History digest there.
        saved_s: Seconds since 1970 by the store's clock at which it was saved.
        size_bytes: What it takes in the store.
    """

    name: str
    position: int
    digest: int
    saved_s: float
    size_bytes: int


class Checkpoint(NamedTuple):
    """What is kept of a session.

    Attributes:
        cursor: Its cursor; b"" if it had none.
        record: Its record.
    """

    cursor: bytes
    record: Record


def checkpoint_field(name: str) -> bytes:
    """Returns the field of a checkpoint."""
    return _FIELD + name.encode()


def read_head(field: bytes, size_bytes: int, beginning: bytes) -> CheckpointHead:
    """Reads a checkpoint as a list has it.

    Args:
        field: Of the hash.
        size_bytes: Of its value.
        beginning: Of the value, up to the end of the record's stamp.

    Raises:
        RecordCorrupt: It is no checkpoint.
    """
    if not field.startswith(_FIELD):
        raise RecordCorrupt(f"the field {field!r:.80} beside the record is not a checkpoint")
    saved_ms, _, data = _cut(beginning)
    if len(data) < STAMP_END:
        raise _cut_off(beginning)
    _, position, digest = stamp_of(data)
    if not 0 <= position <= MAX_POSITION:
        raise RecordCorrupt(f"the checkpoint has the position {position}, beyond 2^53 - 1")
    name = field.removeprefix(_FIELD).decode(errors="replace")
    return CheckpointHead(name, position, digest, saved_ms / 1000, size_bytes)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        RecordCorrupt: It is none, or its record is damaged.
    """
    _, cursor, record = _cut(data)
    return Checkpoint(cursor, decode(record))


def _cut(data: bytes) -> tuple[int, bytes, bytes]:
    """Returns when it was saved, in milliseconds, its cursor, and what there is of its record."""
    if len(data) < _PREFIX.size:
        raise _cut_off(data)
    saved_ms, size = _PREFIX.unpack_from(data)
    end = _PREFIX.size + size
    return saved_ms, data[_PREFIX.size : end], data[end:]


def _cut_off(data: bytes) -> RecordCorrupt:
    return RecordCorrupt(f"a checkpoint ends after {len(data)} bytes, inside its header")
