"""What processes tell each other over the store's channels about watched sessions. Pure.

A process that has watchers sends a `Lease` again and again: which sessions, and to which channel. Whoever
settles a chunk of one of them sends an `Event` there; a `Change` where its record was changed otherwise.
Numbers are little-endian. What is not understood is no message: versions may differ during an update.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from service.engine.rows import TOKEN_DTYPES

_LEASE, _EVENT, _CHANGE = b"HFL1", b"HFE1", b"HFC1"
_KINDS = tuple(TOKEN_DTYPES)

_LEASE_HEADER = struct.Struct("<4sIHI")  # magic, milliseconds, bytes of the channel, number of keys
_LEASED_HEADER = struct.Struct("<HB")  # bytes of the key, whether states are wanted
_EVENT_HEADER = struct.Struct("<4sBBqqqqIId")  # magic, flags, kind, …, tokens, width, time
_SIZES = struct.Struct("<IIIII")  # bytes of key, replica, tokens, outputs, state

_IS_REPLAYED, _HAS_STATE = 1, 2


class Lease(NamedTuple):
    """Wishes of one process.

    Attributes:
        channel: Where it listens.
        duration_s: For so long it wants to hear of them, 0 is no longer.
        wants_state: Store keys of the sessions -> whether the states are wanted, too.
    """

    channel: bytes
    duration_s: float
    wants_state: Mapping[bytes, bool]


class Event(NamedTuple):
    """A chunk that was applied, now or before.

    Attributes:
        key: Store key of its session.
        incarnation: Of the session.
        position: Tokens consumed, the chunk included.
        digest: History digest there.
        model_version: Version that ran.
        kind: What the tokens are, a key of `TOKEN_DTYPES`.
        token_count: How many.
        width: Features per token; 1 for text and ids.
        tokens: Raw, (k,) or (k, width), row-major.
        outputs: What the chunk gave, as its reply has it.
        state: Raw, after the chunk; None if not wanted, or not at hand.
        replayed: It had been applied before.
        committed_unix_s: Seconds since 1970 by the clock of the process that answered it.
        replica: Names that process.
    """

    key: bytes
    incarnation: int
    position: int
    digest: int
    model_version: int
    kind: str
    token_count: int
    width: int
    tokens: bytes
    outputs: bytes
    state: bytes | None
    replayed: bool
    committed_unix_s: float
    replica: str


class Change(NamedTuple):
    """A record that was changed otherwise than by a chunk: who watches it looks at it.

    Attributes:
        key: Store key of its session.
    """

    key: bytes


def encode_lease(lease: Lease) -> bytes:
    """Returns a message for the channel that all processes hear."""
    duration_ms, count = round(lease.duration_s * 1000), len(lease.wants_state)
    parts = [_LEASE_HEADER.pack(_LEASE, duration_ms, len(lease.channel), count), lease.channel]
    for key, wants_state in lease.wants_state.items():
        parts += (_LEASED_HEADER.pack(len(key), wants_state), key)
    return b"".join(parts)


def decode_lease(data: bytes) -> Lease:
    """Reads a lease.

    Raises:
        ValueError: It is none.
    """
    try:
        magic, duration_ms, size, count = _LEASE_HEADER.unpack_from(data)
        if magic != _LEASE:
            raise ValueError(f"a message begins with {magic!r}, expected {_LEASE!r}")
        start = _LEASE_HEADER.size
        channel = _cut(data, start, size)
        start += size
        wants_state = {}
        for _ in range(count):
            size, is_wanted = _LEASED_HEADER.unpack_from(data, start)
            start += _LEASED_HEADER.size
            wants_state[_cut(data, start, size)] = bool(is_wanted)
            start += size
    except struct.error as error:
        raise ValueError(f"a lease of {len(data)} bytes ends too early: {error}") from None
    return Lease(channel, duration_ms / 1000, wants_state)


def encode_event(event: Event) -> bytes:
    """Returns a message for the channel of a process that wants it."""
    flags = _IS_REPLAYED * event.replayed | _HAS_STATE * (event.state is not None)
    stamp = event.incarnation, event.position, event.digest
    header = _EVENT_HEADER.pack(
        *(_EVENT, flags, _KINDS.index(event.kind), *stamp, event.model_version),
        *(event.token_count, event.width, event.committed_unix_s),
    )
    parts = event.key, event.replica.encode(), event.tokens, event.outputs, event.state or b""
    return b"".join((header, _SIZES.pack(*map(len, parts)), *parts))


def encode_change(key: bytes) -> bytes:
    """Returns a message that a record was changed."""
    return _CHANGE + key


def decode_news(data: bytes) -> Event | Change:
    """Reads what comes over the channel of a process.

    Raises:
        ValueError: It is neither.
    """
    if data[: len(_CHANGE)] == _CHANGE:
        return Change(data[len(_CHANGE) :])
    try:
        magic, flags, kind, incarnation, position, digest, version, count, width, unix_s = (
            _EVENT_HEADER.unpack_from(data)
        )
        if magic != _EVENT or kind >= len(_KINDS):
            raise ValueError(f"a message begins with {data[:6]!r}, which is no event")
        parts = []
        start = _EVENT_HEADER.size + _SIZES.size
        for size in _SIZES.unpack_from(data, _EVENT_HEADER.size):
            parts.append(_cut(data, start, size))
            start += size
    except struct.error as error:
        raise ValueError(f"an event of {len(data)} bytes ends too early: {error}") from None
    key, replica, tokens, outputs, state = parts
    if len(tokens) != count * width * TOKEN_DTYPES[_KINDS[kind]].itemsize:
        raise ValueError(f"an event of {count} tokens of width {width} has {len(tokens)} bytes of them")
    return Event(
        key,
        incarnation,
        position,
        digest,
        version,
        _KINDS[kind],
        count,
        width,
        tokens,
        outputs,
        state if flags & _HAS_STATE else None,
        bool(flags & _IS_REPLAYED),
        unix_s,
        replica.decode(),
    )


def _cut(data: bytes, start: int, size: int) -> bytes:
    if start + size > len(data):
        raise ValueError(f"a message of {len(data)} bytes ends inside a part, which ends at {start + size}")
    return data[start : start + size]
