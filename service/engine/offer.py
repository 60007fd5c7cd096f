"""Turns what ran into records to commit. Pure: no clock, no I/O.

Most rows keep one reply, and their records have one layout: these become one matrix. A row whose client
sends ahead keeps several, as many as it has not acknowledged, and is encoded by itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast import history_digest
from service.common.errors import ServiceError, StateNotFinite
from service.engine.batch import Ran, Steps
from service.engine.rules import keep_replies, sends_ahead
from service.store.protocol import Writes
from service.store.record import (
    REPLY_BYTES,
    KeptReply,
    Record,
    decode_replies,
    encode,
    encode_replies,
    encode_rows,
)


class Offer(NamedTuple):
    """Rows of a block whose records are offered to the store.

    Attributes:
        steps: The rows.
        stamps: Of the records, int64 (B, 3).
        states: Raw, (B, state_bytes).
        outputs: Encoded, (B, n).
        tails: The replies that each record keeps, encoded; None if the next record will not need them.
        writes: The records.
    """

    steps: Steps
    stamps: NDArray[np.int64]
    states: NDArray[np.uint8]
    outputs: NDArray[np.uint8]
    tails: list[bytes] | None
    writes: Writes


Refused = list[tuple[int, ServiceError]]
"""Rows of a block, by index, that cannot be committed, and why."""


def make_offers(ran: Ran, tail: Callable[[int], bytes]) -> tuple[list[Offer], Refused]:
    """Makes the records of a block.

    Args:
        ran: What it gave.
        tail: Gives the replies that the present record of a slot keeps, encoded.

    Returns:
        At most two offers, of rows that keep one reply and of others; and rows that have no record.
    """
    is_ahead = _is_ahead(ran)
    if is_ahead is None and ran.is_finite is None:
        return [_offer_alike(ran)], []
    every = np.ones(len(ran.states), np.bool_)
    is_finite = every if ran.is_finite is None else ran.is_finite
    is_ahead = ~every if is_ahead is None else is_ahead
    count = ran.steps.block.asked.token_count
    refused: Refused = [(int(row), _not_finite(count)) for row in np.flatnonzero(~is_finite)]
    offers = []
    alike = np.flatnonzero(is_finite & ~is_ahead)
    if len(alike):
        offers.append(_offer_alike(_part(ran, alike)))
    ahead = np.flatnonzero(is_finite & is_ahead)
    if len(ahead):
        offers += _offer_each(ran, ahead, tail, refused)
    return offers, refused


def _is_ahead(ran: Ran) -> NDArray[np.bool_] | None:
    """Tells which clients have not acknowledged the last chunk; None if all have, as those that wait do."""
    acknowledged = ran.steps.block.acknowledged
    if acknowledged is None:
        return None
    is_ahead = sends_ahead(ran.steps.standing.stamps, acknowledged)
    return is_ahead if is_ahead.any() else None


def _part(ran: Ran, chosen: NDArray[np.int64]) -> Ran:
    return Ran(ran.steps.part(chosen), ran.states[chosen], None, ran.outputs[chosen])


def _next_stamps(ran: Ran) -> NDArray[np.int64]:
    asked = ran.steps.block.asked
    stamps = ran.steps.standing.stamps.copy()
    stamps[:, 1] += asked.token_count
    stamps[:, 2] = history_digest.after(stamps[:, 2], ran.steps.block.sums, asked.element_count)
    return stamps


def _offer_alike(ran: Ran) -> Offer:
    block, standing, model = ran.steps.block, ran.steps.standing, ran.steps.model
    stamps = _next_stamps(ran)
    records = encode_rows(
        stamps,
        standing.nonces,
        model.fingerprint,
        ran.states,
        block.asked.token_count,
        standing.stamps[:, 2],
        ran.outputs,
    )
    writes = Writes(block.keys, standing.stamps.tobytes(), records)
    tails = None
    if block.acknowledged is not None:
        tails = _cut(records[:, records.shape[1] - REPLY_BYTES - ran.outputs.shape[1] :])
    return Offer(ran.steps, stamps, ran.states, ran.outputs, tails, writes)


def _cut(rows: NDArray[np.uint8]) -> list[bytes]:
    joined, size = rows.tobytes(), rows.shape[1]
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def _offer_each(
    ran: Ran, chosen: NDArray[np.int64], tail: Callable[[int], bytes], refused: Refused
) -> list[Offer]:
    """Offers rows that keep several replies; adds those that would keep too many to `refused`."""
    block, standing, fingerprint = ran.steps.block, ran.steps.standing, ran.steps.model.fingerprint
    acknowledged = block.acknowledged
    assert acknowledged is not None, "bug: nobody sends ahead"
    stamps, outputs = _next_stamps(ran), _cut(ran.outputs)
    rows, records, kept_tails = [], [], []
    for row in chosen.tolist():
        incarnation, position, digest = stamps[row].tolist()
        digest_before = int(standing.stamps[row, 2])
        reply = KeptReply(position, block.asked.token_count, digest_before, digest, outputs[row])
        try:
            replies = decode_replies(tail(int(ran.steps.slots[row])))
            kept = keep_replies(replies, reply, int(acknowledged[row]))
        except ServiceError as error:
            refused.append((row, error))
            continue
        rows.append(row)
        state = ran.states[row].tobytes()
        nonce = int(standing.nonces[row])
        record = Record(incarnation, position, fingerprint, state, kept, digest=digest, nonce=nonce)
        records.append(encode(record))
        kept_tails.append(encode_replies(kept))
    if not rows:
        return []
    part = np.array(rows)
    steps = ran.steps.part(part)
    writes = Writes(steps.block.keys, steps.standing.stamps.tobytes(), records)
    return [Offer(steps, stamps[part], ran.states[part], ran.outputs[part], kept_tails, writes)]


def _not_finite(token_count: int) -> StateNotFinite:
    return StateNotFinite(
        f"after these {token_count} tokens the state would hold NaN or infinity; nothing was changed",
        field="tokens",
    )
