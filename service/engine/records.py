"""Turns what ran into records to commit. Pure: no clock, no I/O.

What has no record is told as soon as a run has ended. The records themselves are made when their commit
begins: what the commit before has answered is on its way by then, and the store idle for a moment, so that
callers can send their next chunks meanwhile.

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
from service.store.record import REPLY_BYTES, KeptReply, Record, Tail, encode, encode_with
from service.store.record_rows import cut_rows, encode_rows

Refused = list[tuple[int, ServiceError]]
"""Rows, by index, that cannot be committed, and why."""


def fit_rows(rows: Rows, tail: Callable[[int], bytes]) -> tuple[list[Rows], Refused]:
    """Says which rows that ran can be committed; fills in their next stamps, and which replies they keep.

    Args:
        rows: With what they gave.
        tail: Gives the replies that the present record of a slot keeps, encoded.

    Returns:
        At most two parts, those that keep one reply and others; and rows that have no record.
    """
    is_ahead = rows.is_ahead
    if is_ahead is None and rows.is_finite is None:
        rows.next_stamps, rows.kept = _next_stamps(rows), None
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
        part.next_stamps, part.kept = _next_stamps(part), None
        parts.append(part)
    ahead = np.flatnonzero(is_finite & is_ahead)
    if len(ahead):
        parts += _keep_several(rows, ahead, tail, refused)
    return parts, refused


def make_records(rows: Rows) -> None:
    """Fills in the records of a part that `fit_rows` gave."""
    if rows.kept is not None:
        _make_each(rows, rows.kept)
    elif len(rows.keys) == 1:  # the idle server: scalars are faster than arrays of one
        _make_one(rows)
    else:
        _make_alike(rows)


def _next_stamps(rows: Rows) -> NDArray[np.int64]:
    count = rows.asked.token_count
    if len(rows.keys) == 1:  # the idle server: scalars are faster than arrays of one
        [(incarnation, position, digest)], [(a, b)] = rows.stamps.tolist(), rows.sums.tolist()
        digest = Run(a, b, count * rows.asked.width).after(digest)
        return np.array([(incarnation, position + count, digest)], np.int64)
    stamps = rows.stamps.copy()
    stamps[:, 1] += count
    stamps[:, 2] = after(stamps[:, 2], rows.sums, count * rows.asked.width)
    return stamps


def _make_alike(rows: Rows) -> None:
    """Fills in records that keep one reply."""
    records = encode_rows(
        rows.next_stamps,
        rows.nonces,
        rows.model.fingerprint,
        rows.next_states,
        rows.asked.token_count,
        rows.stamps[:, 2],
        rows.outputs,
    )
    rows.writes = Writes(rows.keys, rows.stamps.tobytes(), records, rows.cursors)
    rows.tails = None
    if rows.acknowledged is not None:
        rows.tails = cut_rows(records[:, records.shape[1] - REPLY_BYTES - rows.outputs.shape[1] :])


def _make_one(rows: Rows) -> None:
    """Fills in the record of a single row that keeps one reply."""
    [[incarnation, position, digest]], outputs = rows.next_stamps.tolist(), rows.outputs.tobytes()
    reply = KeptReply(position, rows.asked.token_count, int(rows.stamps[0, 2]), digest, outputs)
    fingerprint, state, [nonce] = rows.model.fingerprint, rows.next_states.tobytes(), rows.nonces.tolist()
    data = encode(Record(incarnation, position, fingerprint, state, (reply,), digest=digest, nonce=nonce))
    rows.writes = Writes(rows.keys, rows.stamps.tobytes(), [data], rows.cursors)
    rows.tails = None if rows.acknowledged is None else [data[-REPLY_BYTES - len(outputs) :]]


def _keep_several(
    rows: Rows, chosen: NDArray[np.int64], tail: Callable[[int], bytes], refused: Refused
) -> list[Rows]:
    """Fills in replies of rows that keep several; adds rows that would keep too many to `refused`."""
    acknowledged = rows.acknowledged
    assert acknowledged is not None, "bug: nobody sends ahead"
    stamps, outputs = _next_stamps(rows), cut_rows(rows.outputs)
    places, kept = [], []
    for place in chosen.tolist():
        _, position, digest = stamps[place].tolist()
        digest_before = int(rows.stamps[place, 2])
        reply = KeptReply(position, rows.asked.token_count, digest_before, digest, outputs[place])
        try:
            kept.append(keep_replies(tail(int(rows.slots[place])), reply, int(acknowledged[place])))
        except ServiceError as error:
            refused.append((place, error))
            continue
        places.append(place)
    if not places:
        return []
    part = rows.take(np.array(places))
    part.next_stamps, part.kept = stamps[places], kept
    return [part]


def _make_each(rows: Rows, kept: list[Tail]) -> None:
    """Fills in records that keep several replies."""
    fingerprint, records = rows.model.fingerprint, []
    stamps, nonces = rows.next_stamps.tolist(), rows.nonces.tolist()
    for (incarnation, position, digest), nonce, state, tail in zip(
        stamps, nonces, cut_rows(rows.next_states), kept, strict=True
    ):
        record = Record(incarnation, position, fingerprint, state, digest=digest, nonce=nonce)
        records.append(encode_with(record, tail))
    rows.writes = Writes(rows.keys, rows.stamps.tobytes(), records, rows.cursors)
    rows.tails = [tail.data for tail in kept]


def _not_finite(token_count: int) -> StateNotFinite:
    return StateNotFinite(
        f"after these {token_count} tokens the state would hold NaN or infinity; nothing was changed",
        field="tokens",
    )
