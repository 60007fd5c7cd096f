"""The record: what the store keeps per session, as bytes. Pure; knows no store and no model.

Layout, little-endian:

    offset  bytes  what
    0       4      magic "HFR2"
    4       4      number of kept replies
    8       8      xxh3-64 of everything from offset 16, seeded with the number of kept replies
    16      8      incarnation, 1 .. 2^53 - 1
    24      8      position, 0 .. 2^53 - 1; ~position (negative) marks the tombstone of a deleted session,
                   position + 2^62 a session in quarantine
    32      7      history digest, see `holdfast.history_digest`; it needs no more
    39      1      0; in the store 1 if a hash may lie beside the record, see `flag`
    40      8      nonce of the request that opened the session; negative: that took it over; 0: none
    48      32     fingerprint: sha256 of the model file
    80      8      bytes of state
    88      ...    state: raw tensors, in the order of the model's contract
            ...    in quarantine only: bytes of the reason (4), the reason, UTF-8
            ...    kept replies, oldest first: position after the chunk (8), tokens in it (4),
                   bytes of the reply (4), history digest before the chunk (8) and after it (8), the reply

Bytes 16..39 are the *stamp*. It is all that a commit compares, and it names one history: two records of a
session with one stamp have the same state. Position alone would not do, since a store that has gone back
reaches the same position again by other tokens. A tombstone must not share the stamp of the record it
replaces, nor a record in quarantine that of the one it was and will be again, hence the marks in the
position. The stamp sits at a fixed offset that the script can cut out.

Without its state and replies a record with one reply has 88 + 32 = 120 bytes.
"""

import functools
import secrets
import struct
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from holdfast.errors import RecordCorrupt
from holdfast.history_digest import INITIAL, MAX_NUMBER
from service.store.flag import rows_without_flag, without_flag

MAGIC = b"HFR2"
STAMP_START = 16
STAMP_END = 40
NO_STAMP = bytes(STAMP_END - STAMP_START)
"""Stamp of a session that is not stored; no record has it, since an incarnation is not 0."""


MAX_POSITION = MAX_NUMBER
"""A session may consume so many tokens; far below the marks of tombstones and quarantine."""

HEADER = struct.Struct("<4sIQqqqq32sQ")
_BODY_HEADER = struct.Struct("<qqqq32sQ")
_PREFIX = struct.Struct("<4sIQ")
_STAMP = struct.Struct("<qqq")
_NONCE_END = STAMP_END + 8
_REPLY_HEADER = struct.Struct("<qIIqq")
REASON_HEADER = struct.Struct("<I")
_OF_CHECKSUM, _OF_STAMP, _OF_NONCE, _SHARED = 1, slice(2, 5), 5, [0, 6, 7, 8, 9, 10]
"""Where these are in a header that is read as words of 8 bytes; records of one layout share the last."""
_LEAST = (1, 0, 0)
"""The numbers of a live record's stamp are at least these, and at most `MAX_NUMBER`."""
QUARANTINED = 1 << 62

REPLY_BYTES = _REPLY_HEADER.size
"""What a kept reply has beside its outputs."""


class KeptReply(NamedTuple):
    """A reply kept so that its chunk can be sent again.

    Attributes:
        position: Position after the chunk.
        token_count: Tokens in the chunk.
        digest_before: History digest before the chunk.
        digest: History digest after it.
        outputs: What the chunk gave, encoded by the edge.
    """

    position: int
    token_count: int
    digest_before: int
    digest: int
    outputs: bytes


class Record(NamedTuple):
    """A session as the store keeps it.

    Attributes:
        incarnation: Random, 1 .. 2^53 - 1.
        position: Tokens consumed; for a deleted session, at the time it was deleted.
        deleted: It is a tombstone: no state, no replies.
        quarantine_reason: Why no chunk may run; "" if the session is not in quarantine.
        fingerprint: sha256 of the model file, 32 bytes.
        state: Raw tensors, in the order of the model's contract.
        replies: Replies kept, oldest first.
        digest: History digest.
        nonce: Of the request that opened the session; negative: of the one that took it over; 0: none.
    """

    incarnation: int
    position: int
    fingerprint: bytes
    state: bytes = b""
    replies: tuple[KeptReply, ...] = ()
    deleted: bool = False
    quarantine_reason: str = ""
    digest: int = INITIAL
    nonce: int = 0

    @property
    def stamp(self) -> bytes:
        """Incarnation, position and history digest as a commit compares them, 24 bytes."""
        return stamp(self.incarnation, _marked_position(self), self.digest)


class RecordRows(NamedTuple):
    """B live records of one model that are laid out alike.

    Attributes:
        stamps: Incarnation, position and history digest of each, int64 (B, 3).
        nonces: int64 (B,).
        fingerprint: Of the model, 32 bytes.
        states: Raw, uint8 (B, state_bytes).
        tails: Kept replies as `encode_replies` gives them, uint8 (B, n).
    """

    stamps: NDArray[np.int64]
    nonces: NDArray[np.int64]
    fingerprint: bytes
    states: NDArray[np.uint8]
    tails: NDArray[np.uint8]


def draw_incarnation() -> int:
    """Draws the number of a new incarnation: random, 1 .. 2^53 - 1, so that JavaScript can hold it."""
    return secrets.randbelow(MAX_NUMBER) + 1


def new_record(fingerprint: bytes, state: bytes, *, digest: int = INITIAL, nonce: int = 0) -> Record:
    """Returns the record of a session that is opened now.

    Args:
        fingerprint: Of its model, 32 bytes.
        state: Raw, to begin at.
        digest: `history_digest.initial_digest` of a state that is not the model's own.
        nonce: Of the request.
    """
    return Record(draw_incarnation(), 0, fingerprint, state, digest=digest, nonce=nonce)


def stamp(incarnation: int, position: int, digest: int) -> bytes:
    """Packs what a commit compares, 24 bytes; the position as it stands in the record."""
    return _STAMP.pack(incarnation, position, digest)


def _marked_position(record: Record) -> int:
    if record.deleted:
        return ~record.position
    return record.position | QUARANTINED if record.quarantine_reason else record.position


def encode(record: Record) -> bytes:
    """Turns a record into bytes; `decode` is the inverse."""
    body = _BODY_HEADER.pack(
        record.incarnation,
        _marked_position(record),
        record.digest,
        record.nonce,
        record.fingerprint,
        len(record.state),
    )
    reason = b""
    if record.quarantine_reason:
        text = record.quarantine_reason.encode()
        reason = REASON_HEADER.pack(len(text)) + text
    checked = b"".join((body, record.state, reason, encode_replies(record.replies)))
    count = len(record.replies)
    return _PREFIX.pack(MAGIC, count, xxhash.xxh3_64_intdigest(checked, count)) + checked


def stamp_of(data: bytes) -> tuple[int, int, int]:
    """Returns incarnation, position as it stands there and history digest, of a record or its beginning."""
    found: tuple[int, int, int] = _STAMP.unpack_from(without_flag(data), STAMP_START)
    return found


def encode_replies(replies: tuple[KeptReply, ...]) -> bytes:
    """Returns the end of a record, its kept replies; `decode_replies` is the inverse."""
    parts: list[bytes] = []
    for reply in replies:
        parts += (
            _REPLY_HEADER.pack(
                reply.position, reply.token_count, len(reply.outputs), reply.digest_before, reply.digest
            ),
            reply.outputs,
        )
    return b"".join(parts)


def encode_rows(
    stamps: NDArray[np.int64],
    nonces: NDArray[np.int64],
    fingerprint: bytes,
    states: NDArray[np.uint8],
    token_count: int,
    digests_before: NDArray[np.int64],
    outputs: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Encodes B live records of one model that keep one reply each; a row is what `encode` gives.

    Args:
        stamps: (B, 3), incarnation, position and history digest.
        nonces: (B,).
        fingerprint: Of the model, 32 bytes.
        states: (B, n).
        token_count: Tokens in the chunk that each reply answers.
        digests_before: (B,), history digests before these chunks.
        outputs: (B, m), the replies.

    Returns:
        (B, size), C-contiguous.
    """
    rows, state_bytes = states.shape
    reply_start = HEADER.size + state_bytes
    outputs_start = reply_start + _REPLY_HEADER.size
    size = outputs_start + outputs.shape[1]
    header, reply_header = _constant_headers(fingerprint, state_bytes, token_count, outputs.shape[1])
    matrix = np.empty((rows, size), np.uint8)
    matrix[:, : HEADER.size] = header
    numbers = np.empty((rows, 5), np.int64)
    numbers[:, :3], numbers[:, 3], numbers[:, 4] = stamps, nonces, digests_before
    of_rows = numbers.view(np.uint8)
    matrix[:, STAMP_START:_NONCE_END] = of_rows[:, :32]
    matrix[:, HEADER.size : reply_start] = states
    matrix[:, reply_start:outputs_start] = reply_header
    matrix[:, reply_start : reply_start + 8] = of_rows[:, 8:16]
    matrix[:, outputs_start - 16 : outputs_start - 8] = of_rows[:, 32:]
    matrix[:, outputs_start - 8 : outputs_start] = of_rows[:, 16:24]
    matrix[:, outputs_start:] = outputs
    matrix[:, 8:STAMP_START] = _checksums(matrix, 1)[:, np.newaxis].view(np.uint8)
    return matrix


def cut_rows(rows: NDArray[np.uint8]) -> list[bytes]:
    """Returns the bytes of each row, (B, n)."""
    if not rows.shape[1]:
        return [b""] * len(rows)
    cut: list[bytes] = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0].tolist()
    return cut


def _checksums(matrix: NDArray[np.uint8], reply_count: int) -> NDArray[np.uint64]:
    """Returns the checksum of each record, (B, size), that keeps so many replies."""
    digests = map(xxhash.xxh3_64_intdigest, matrix[:, STAMP_START:], repeat(reply_count))
    return np.fromiter(digests, "<u8", len(matrix))


@functools.lru_cache(256)
def _constant_headers(
    fingerprint: bytes, state_bytes: int, token_count: int, output_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the headers of record and reply as they are in every row, zero where rows differ."""
    header = HEADER.pack(MAGIC, 1, 0, 0, 0, 0, 0, fingerprint, state_bytes)
    reply_header = _REPLY_HEADER.pack(0, token_count, output_bytes, 0, 0)
    return np.frombuffer(header, np.uint8), np.frombuffer(reply_header, np.uint8)


def decode(data: bytes) -> Record:
    """Turns bytes into the record they came from.

    Raises:
        RecordCorrupt: The bytes are not what `encode` gives; the message says where they differ.
    """
    if len(data) < HEADER.size:
        raise RecordCorrupt(f"record of {len(data)} bytes, shorter than its header of {HEADER.size}")
    data = without_flag(data)
    magic, count, checksum, incarnation, position, digest, nonce, fingerprint, state_bytes = (
        HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise RecordCorrupt(f"record starts with {magic!r}, expected {MAGIC!r}")
    if xxhash.xxh3_64_intdigest(memoryview(data)[STAMP_START:], count) != checksum:
        raise RecordCorrupt("record does not match its checksum")
    state_end = replies_start = HEADER.size + state_bytes
    if state_end > len(data):
        raise RecordCorrupt(f"record of {len(data)} bytes, its state would end at {state_end}")
    reason = ""
    if position >= QUARANTINED:
        reason, replies_start = _decode_reason(data, state_end)
        position -= QUARANTINED
    is_deleted = position < 0
    position = ~position if is_deleted else position
    if position > MAX_POSITION or not 0 < incarnation <= MAX_NUMBER:
        raise RecordCorrupt(
            f"record has position {position} and incarnation {incarnation}, beyond 2^53 - 1"
        )
    if not 0 <= digest <= MAX_NUMBER:
        raise RecordCorrupt(f"record has the history digest {digest}, beyond 2^53 - 1")
    return Record(
        incarnation=incarnation,
        position=position,
        fingerprint=fingerprint,
        state=data[HEADER.size : state_end],
        replies=_checked_replies(data[replies_start:], count),
        deleted=is_deleted,
        quarantine_reason=reason,
        digest=digest,
        nonce=nonce,
    )


def decode_rows(data: Sequence[bytes]) -> tuple[RecordRows, NDArray[np.int64]] | None:
    """Decodes records of one size together, as far as they are live and laid out as the first of them is.

    Args:
        data: At least one, all of one length.

    Returns:
        Records that `decode` takes as well, and which they are, by index; None if the first one is none of
        them. They keep one reply or, as sessions that were only opened, none.
    """
    size = len(data[0])
    if size < HEADER.size:
        return None
    magic, count, *_, fingerprint, state_bytes = HEADER.unpack_from(data[0])
    tail_start = HEADER.size + state_bytes
    output_bytes = size - tail_start - count * _REPLY_HEADER.size
    if magic != MAGIC or count > 1 or output_bytes < 0 or (output_bytes and not count):
        return None
    matrix = rows_without_flag(np.frombuffer(b"".join(data), np.uint8).reshape(-1, size))
    words = np.ascontiguousarray(matrix[:, : HEADER.size]).view("<i8")
    shared, stamps = words[:, _SHARED], words[:, _OF_STAMP]
    is_alike = (shared == shared[0]).all(axis=1)
    is_alike &= ((stamps >= _LEAST) & (stamps <= MAX_NUMBER)).all(axis=1)
    is_alike &= words[:, _OF_CHECKSUM].view("<u8") == _checksums(matrix, count)
    if count:
        lengths = np.ascontiguousarray(matrix[:, tail_start + 12 : tail_start + 16]).view("<u4")
        is_alike &= lengths[:, 0] == output_bytes
    if not is_alike[0]:
        return None
    chosen = np.flatnonzero(is_alike)
    if len(chosen) < len(matrix):
        matrix, words = matrix[chosen], words[chosen]
    rows = RecordRows(
        words[:, _OF_STAMP],
        words[:, _OF_NONCE],
        fingerprint,
        matrix[:, HEADER.size : tail_start],
        matrix[:, tail_start:],
    )
    return rows, chosen


def _decode_reason(data: bytes, start: int) -> tuple[str, int]:
    """Returns why a session is in quarantine, and where that text ends."""
    try:
        (size,) = REASON_HEADER.unpack_from(data, start)
        end = start + REASON_HEADER.size + size
        reason = data[start + REASON_HEADER.size : end].decode()
    except (struct.error, UnicodeDecodeError):
        raise RecordCorrupt("record ends inside its reason for quarantine, or that is not text") from None
    if not reason or end > len(data):
        raise RecordCorrupt(
            f"the reason for quarantine has {len(reason)} characters, {size} bytes expected"
        )
    return reason, end


def decode_replies(data: bytes) -> tuple[KeptReply, ...]:
    """Turns what `encode_replies` gave into the replies it came from.

    Raises:
        RecordCorrupt: The bytes end inside a reply.
    """
    replies = []
    offset = 0
    while offset < len(data):
        try:
            position, token_count, size, before, after = _REPLY_HEADER.unpack_from(data, offset)
        except struct.error:
            raise RecordCorrupt("record ends inside a kept reply") from None
        offset += _REPLY_HEADER.size
        replies.append(KeptReply(position, token_count, before, after, data[offset : offset + size]))
        offset += size
    if offset != len(data):
        raise RecordCorrupt(f"the kept replies have {len(data)} bytes, their lengths say {offset}")
    return tuple(replies)


def _checked_replies(data: bytes, count: int) -> tuple[KeptReply, ...]:
    replies = decode_replies(data)
    if len(replies) != count:
        raise RecordCorrupt(f"record has {len(replies)} kept replies, its header says {count}")
    return replies
