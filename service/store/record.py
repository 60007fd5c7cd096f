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

import secrets
import struct
from typing import NamedTuple

import xxhash

from holdfast.errors import RecordCorrupt
from holdfast.history_digest import INITIAL, MAX_NUMBER
from service.store.flag import without_flag

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
REPLY_HEADER = struct.Struct("<qIIqq")
_REPLY_START = struct.Struct("<qII")
REASON_HEADER = struct.Struct("<I")
QUARANTINED = 1 << 62

REPLY_BYTES = REPLY_HEADER.size
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


class Tail(NamedTuple):
    """The end of a record: its kept replies, encoded.

    Attributes:
        reply_count: How many.
        data: As `encode_replies` gives them.
    """

    reply_count: int
    data: bytes


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
    def tombstone(self) -> "Record":
        """What is stored of the session once it is deleted."""
        return self._replace(state=b"", replies=(), deleted=True, quarantine_reason="")

    @property
    def stamp(self) -> bytes:
        """Incarnation, position and history digest as a commit compares them, 24 bytes."""
        return stamp(self.incarnation, _marked_position(self), self.digest)


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
    return encode_with(record, Tail(len(record.replies), encode_replies(record.replies)))


def encode_with(record: Record, tail: Tail) -> bytes:
    """Turns a record into bytes, with these replies in place of its own."""
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
    checked = b"".join((body, record.state, reason, tail.data))
    return (
        _PREFIX.pack(MAGIC, tail.reply_count, xxhash.xxh3_64_intdigest(checked, tail.reply_count)) + checked
    )


def stamp_of(data: bytes) -> tuple[int, int, int]:
    """Returns incarnation, position as it stands there and history digest, of a record or its beginning."""
    found: tuple[int, int, int] = _STAMP.unpack_from(without_flag(data), STAMP_START)
    return found


def encode_replies(replies: tuple[KeptReply, ...]) -> bytes:
    """Returns the end of a record, its kept replies; `decode_replies` is the inverse."""
    parts: list[bytes] = []
    for reply in replies:
        parts += (
            REPLY_HEADER.pack(
                reply.position, reply.token_count, len(reply.outputs), reply.digest_before, reply.digest
            ),
            reply.outputs,
        )
    return b"".join(parts)


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
            position, token_count, size, before, after = REPLY_HEADER.unpack_from(data, offset)
        except struct.error:
            raise RecordCorrupt("record ends inside a kept reply") from None
        offset += REPLY_HEADER.size
        replies.append(KeptReply(position, token_count, before, after, data[offset : offset + size]))
        offset += size
    if offset != len(data):
        raise RecordCorrupt(f"the kept replies have {len(data)} bytes, their lengths say {offset}")
    return tuple(replies)


def replies_after(data: bytes, position: int) -> Tail:
    """Drops replies up to a position from what `encode_replies` gave; the others stay as they are.

    Raises:
        RecordCorrupt: The bytes end inside a reply.
    """
    count = start = offset = 0
    while offset < len(data):
        try:
            after, _, size = _REPLY_START.unpack_from(data, offset)
        except struct.error:
            raise RecordCorrupt("record ends inside a kept reply") from None
        offset += REPLY_BYTES + size
        if after > position:
            count += 1
        else:
            start = offset
    if offset != len(data):
        raise RecordCorrupt(f"the kept replies have {len(data)} bytes, their lengths say {offset}")
    return Tail(count, data[start:])


def _checked_replies(data: bytes, count: int) -> tuple[KeptReply, ...]:
    replies = decode_replies(data)
    if len(replies) != count:
        raise RecordCorrupt(f"record has {len(replies)} kept replies, its header says {count}")
    return replies
