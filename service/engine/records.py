"""Turns what ran into records to commit. Pure: no clock, no I/O.

Most rows keep one reply, and their records have one layout: these become one matrix. A row whose client
sends ahead keeps several, as many as it has not acknowledged, and is encoded by itself.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError, StateNotFinite
from holdfast.history_digest import Run, after
from service.engine.rows import Rows
from service.engine.rules import keep_replies
from service.store.protocol import Writes
from service.store.record import (
    REPLY_BYTES,
    KeptReply,
    Record,
    cut_rows,
    decode_replies,
    encode,
    encode_replies,
    encode_rows,
)

Refused = list[tuple[int, ServiceError]]
"""Rows, by index, that cannot be committed, and why."""


def make_records(rows: Rows, tail: Callable[[int], bytes]) -> tuple[list[Rows], Refused]:
    """Fills in the records of rows that ran.

    Args:
        rows: With what they gave.
        tail: Gives the replies that the present record of a slot keeps, encoded.

    Returns:
        At most two parts, those that keep one reply and others; and rows that have no record.
    """
    is_ahead = rows.is_ahead
    if is_ahead is None and rows.is_finite is None:
        if len(rows.keys) == 1:  # the idle server: scalars are faster than arrays of one
            _make_one(rows)
        else:
            _make_alike(rows)
        return [rows], []
    every = np.ones(len(rows), np.bool_)
    is_finite = every if rows.is_finite is None else rows.is_finite
    is_ahead = ~every if is_ahead is None else is_ahead
    count = rows.asked.token_count
    refused: Refused = [(int(row), _not_finite(count)) for row in np.flatnonzero(~is_finite)]
    parts = []
    alike = np.flatnonzero(is_finite & ~is_ahead)
    if len(alike):
        part = rows.take(alike)
        _make_alike(part)
        parts.append(part)
    ahead = np.flatnonzero(is_finite & is_ahead)
    if len(ahead):
        parts += _make_each(rows, ahead, tail, refused)
    return parts, refused


def _next_stamps(rows: Rows) -> NDArray[np.int64]:
    stamps = rows.stamps.copy()
    stamps[:, 1] += rows.asked.token_count
    stamps[:, 2] = after(stamps[:, 2], rows.sums, rows.asked.token_count * rows.asked.width)
    return stamps


def _make_alike(rows: Rows) -> None:
    """Fills in records that keep one reply."""
    rows.next_stamps = _next_stamps(rows)
    records = encode_rows(
        rows.next_stamps,
        rows.nonces,
        rows.model.fingerprint,
        rows.next_states,
        rows.asked.token_count,
        rows.stamps[:, 2],
        rows.outputs,
    )
    rows.writes = Writes(rows.keys, rows.stamps.tobytes(), records)
    rows.tails = None
    if rows.acknowledged is not None:
        rows.tails = cut_rows(records[:, records.shape[1] - REPLY_BYTES - rows.outputs.shape[1] :])


def _make_one(rows: Rows) -> None:
    """Fills in the record of a single row that keeps one reply."""
    count, outputs = rows.asked.token_count, rows.outputs.tobytes()
    [(incarnation, position, digest_before)], [(a, b)] = rows.stamps.tolist(), rows.sums.tolist()
    position += count
    digest = Run(a, b, count * rows.asked.width).after(digest_before)
    reply = KeptReply(position, count, digest_before, digest, outputs)
    fingerprint, state, [nonce] = rows.model.fingerprint, rows.next_states.tobytes(), rows.nonces.tolist()
    data = encode(Record(incarnation, position, fingerprint, state, (reply,), digest=digest, nonce=nonce))
    rows.next_stamps = np.array([(incarnation, position, digest)], np.int64)
    rows.writes = Writes(rows.keys, rows.stamps.tobytes(), [data])
    rows.tails = None if rows.acknowledged is None else [data[-REPLY_BYTES - len(outputs) :]]


def _make_each(
    rows: Rows, chosen: NDArray[np.int64], tail: Callable[[int], bytes], refused: Refused
) -> list[Rows]:
    """Fills in records that keep several replies; adds rows that would keep too many to `refused`."""
    fingerprint, acknowledged = rows.model.fingerprint, rows.acknowledged
    assert acknowledged is not None, "bug: nobody sends ahead"
    stamps, outputs = _next_stamps(rows), cut_rows(rows.outputs)
    places, records, tails = [], [], []
    for place in chosen.tolist():
        incarnation, position, digest = stamps[place].tolist()
        digest_before = int(rows.stamps[place, 2])
        reply = KeptReply(position, rows.asked.token_count, digest_before, digest, outputs[place])
        try:
            replies = decode_replies(tail(int(rows.slots[place])))
            kept = keep_replies(replies, reply, int(acknowledged[place]))
        except ServiceError as error:
            refused.append((place, error))
            continue
        places.append(place)
        state = rows.next_states[place].tobytes()
        nonce = int(rows.nonces[place])
        record = Record(incarnation, position, fingerprint, state, kept, digest=digest, nonce=nonce)
        records.append(encode(record))
        tails.append(encode_replies(kept))
    if not places:
        return []
    part = rows.take(np.array(places))
    part.next_stamps = stamps[places]
    part.writes = Writes(part.keys, part.stamps.tobytes(), records)
    part.tails = tails
    return [part]


def _not_finite(token_count: int) -> StateNotFinite:
    return StateNotFinite(
        f"after these {token_count} tokens the state would hold NaN or infinity; nothing was changed",
        field="tokens",
    )
