"""The blob of an exported session: its record and its cursor as bytes that travel. Pure.

Layout, little-endian:

    offset  bytes  what
    0       4      magic "HFX1"
    4       2      version of the format, 1
    6       2      bytes of the model's name
    8       8      version of the model
    16      2      bytes of the cursor
    18      ...    name of the model, UTF-8, for people: the fingerprint in the record says which it is
            ...    cursor
            ...    the record, as `record` has it
            8      xxh3-64 of everything before

Incarnation and nonce belong to where the session was, so they are constants here: the same session gives
the same blob. The checksum tells damage, not forgery; whoever takes a session from a blob checks what is in
it.
"""

import struct
from typing import NamedTuple

import xxhash

from holdfast.errors import RecordCorrupt
from service.store.record import Record, decode, encode

MAGIC = b"HFX1"
FORMAT = 1

OVERHEAD_BYTES = 1024
"""More than what a blob has beside state, kept replies and names, about."""

HEADER = struct.Struct("<4sHHqH")
_CHECKSUM = struct.Struct("<Q")


class BlobError(ValueError):
    """The bytes are no exported session; the message says where they differ."""


class Exported(NamedTuple):
    """An exported session.

    Attributes:
        model_name: For people, as is the version.
        model_version: See there.
        record: What was stored; its incarnation and nonce mean nothing.
        cursor: Of the session; b"" for none.
    """

    model_name: str
    model_version: int
    record: Record
    cursor: bytes = b""


def with_checksum(data: bytes) -> bytes:
    """Returns the bytes of a blob with its checksum behind them."""
    return data + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(data))


def encode_blob(exported: Exported) -> bytes:
    """Turns a session into bytes; `decode_blob` is the inverse."""
    name = exported.model_name.encode()
    header = HEADER.pack(MAGIC, FORMAT, len(name), exported.model_version, len(exported.cursor))
    record = encode(exported.record._replace(incarnation=1, nonce=0))
    return with_checksum(b"".join((header, name, exported.cursor, record)))


def decode_blob(blob: bytes) -> Exported:
    """Turns bytes into the session that they came from.

    Raises:
        BlobError: They are not what `encode_blob` gives.
    """
    if blob[: len(MAGIC)] != MAGIC:
        raise BlobError(f"it starts with {blob[: len(MAGIC)]!r}, an exported session with {MAGIC!r}")
    end = len(blob) - _CHECKSUM.size
    if end < HEADER.size:
        raise BlobError(f"it has {len(blob)} bytes, an exported session has more: it was cut off")
    _, version, name_bytes, model_version, cursor_bytes = HEADER.unpack_from(blob)
    is_whole = xxhash.xxh3_64_intdigest(memoryview(blob)[:end]) == _CHECKSUM.unpack_from(blob, end)[0]
    if is_whole and version != FORMAT:
        raise BlobError(f"it has format {version}, this server reads format {FORMAT}")
    if not is_whole:
        raise BlobError(f"its {len(blob)} bytes do not match their checksum: it was changed or cut off")
    cursor_start = HEADER.size + name_bytes
    record_start = cursor_start + cursor_bytes
    if record_start > end:
        raise BlobError(f"it has {len(blob)} bytes, its record would begin at {record_start}")
    try:
        name = blob[HEADER.size : cursor_start].decode()
        record = decode(blob[record_start:end])
    except UnicodeDecodeError:
        raise BlobError("the name of its model is not UTF-8") from None
    except RecordCorrupt as error:
        raise BlobError(f"in it, {error.message}") from None
    return Exported(name, model_version, record, blob[cursor_start:record_start])
