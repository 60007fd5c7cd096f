"""Decides what a chunk is: a step to run, a retry to answer, or a mistake. Pure.

Exactly once rests on three facts. A record is replaced only if incarnation and position are those it
was computed from, so a chunk commits at most once. A chunk names its position, so it is recognised
when it comes again. And the reply is stored with the state, so the second answer is the first one.

Let n be the stored position, p the chunk's, k its tokens, a the position whose reply the client has.

    p = n                               run
    p < n, reply to (p, k, digest) kept replay
    p < n otherwise                     PositionConflict(n)
    p > n, a > n                        StoreRegressed(n): the store forgot acknowledged steps
    p > n otherwise                     PositionGap(n)
    no p                                run at n

What is stored may be nothing: then a chunk at position 0 that names a model opens the session, and any
other names something that is gone. Or a tombstone: then the session was closed. Or a session in
quarantine: then nothing runs, only replies that are kept are given again.

Not every answer may come from memory: a replica that was paused remembers an old position. Running on
an old state is harmless, the commit refuses it. A refusal or a replay is final, so the caller of
`decide` makes sure that `stored` is what the store holds before it passes one on.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import (
    InvalidRequest,
    Overloaded,
    PositionConflict,
    PositionGap,
    SessionClosed,
    SessionLost,
    SessionNotFound,
    SessionQuarantined,
    StoreRegressed,
)
from service.store.record import KeptReply, Record

MAX_KEPT_REPLIES = 64
MAX_KEPT_REPLY_BYTES = 64 * 1024
"""Bounds on what a record keeps for retries, so that it stays within a few network packets."""


class Verdict(Enum):
    """What to do with a chunk that is not answered from the record."""

    OPEN = "open"
    RUN = "run"


class Claim(NamedTuple):
    """What a chunk says of itself.

    Attributes:
        token_count: k >= 1.
        digest: `record.token_digest` of its tokens.
        position: Tokens before it, >= 0; None is "append".
        acknowledged: Position of the last reply the client has; None if it does not say.
        incarnation: Incarnation the client means; 0 is any.
        names_model: It names a model, so it may open the session.
    """

    token_count: int
    digest: bytes
    position: int | None = None
    acknowledged: int | None = None
    incarnation: int = 0
    names_model: bool = True


def check(claim: Claim) -> None:
    """Refuses a claim that would be wrong whatever is stored.

    Raises:
        InvalidRequest: A number is out of its range.
    """
    if claim.incarnation < 0:
        raise InvalidRequest(
            f"incarnation is {claim.incarnation}, expected > 0, or 0 for any", field="incarnation"
        )
    if claim.position is not None and claim.position < 0:
        raise InvalidRequest(f"position is {claim.position}, expected >= 0", field="position")
    if claim.acknowledged is None:
        return
    if claim.position is None:
        raise InvalidRequest(
            "acknowledged_position is given without position", field="acknowledged_position"
        )
    if not 0 <= claim.acknowledged <= claim.position:
        raise InvalidRequest(
            f"acknowledged_position is {claim.acknowledged}, expected 0..{claim.position} (position)",
            field="acknowledged_position",
        )


def decide(stored: Record | None, claim: Claim) -> Verdict | KeptReply:
    """Says what a chunk is, given what is stored.

    Returns:
        OPEN: nothing is stored, the chunk opens the session and runs at 0. RUN: it runs at the stored
        position. A kept reply: it ran before, and this is what it gave.

    Raises:
        SessionNotFound, SessionLost, SessionClosed: The session does not exist.
        PositionConflict, PositionGap, StoreRegressed: The chunk does not continue the session.
        SessionQuarantined: It is held, and the chunk is none of those whose replies are kept.
    """
    if stored is None or stored.closed:
        return _open(stored, claim)
    check_incarnation(stored, claim.incarnation)
    reply = _find_reply(stored, claim)
    if reply is not None:
        return reply
    if stored.quarantine_reason:
        raise quarantined(stored)
    if claim.position is None or claim.position == stored.position:
        return Verdict.RUN
    if claim.position > stored.position:
        raise _ahead(stored.position, claim)
    raise _conflict(stored, claim)


def quarantined(stored: Record) -> SessionQuarantined:
    """Returns the refusal of all that would run a session in quarantine."""
    return SessionQuarantined(
        f"the session is held at position {stored.position} until an administrator releases it: "
        f"{stored.quarantine_reason}",
        expected_position=stored.position,
    )


def check_incarnation(stored: Record, meant: int) -> None:
    """Makes sure that a session is in the incarnation that a request means, 0 being any.

    Which of two incarnations came first is not known: the numbers are random, so that nobody can hit one.

    Raises:
        SessionClosed: It is in another one.
    """
    if meant not in (0, stored.incarnation):
        raise SessionClosed(
            f"incarnation {meant} is not the stored one: the session was opened again or taken over by "
            f"another writer, or the store has lost that; it stands at position {stored.position}",
            expected_position=stored.position,
        )


def continues(
    stands_at: NDArray[np.int64],
    positions: NDArray[np.int64],
    incarnations: NDArray[np.int64] | None,
) -> NDArray[np.bool_]:
    """Tells which of B chunks just run: those for which `decide` says RUN, or OPEN with a model named.

    Args:
        stands_at: Incarnation and position of each session, (B, 2); of one that is not stored its new
            incarnation and 0.
        positions: Claimed, (B,); negative is none.
        incarnations: Meant, (B,); 0 is any; None is any for all.
    """
    runs: NDArray[np.bool_] = (positions == stands_at[:, 1]) | (positions < 0)
    if incarnations is not None:
        runs &= (incarnations == 0) | (incarnations == stands_at[:, 0])
    return runs


def sends_ahead(stands_at: NDArray[np.int64], acknowledged: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tells whose clients have not acknowledged the last chunk, so that its reply is kept on.

    Args:
        stands_at: Incarnation and position of each session, (B, 2).
        acknowledged: Position of the last reply that each client has, (B,); negative is not said.
    """
    is_ahead: NDArray[np.bool_] = (acknowledged >= 0) & (acknowledged < stands_at[:, 1])
    return is_ahead


def keep_replies(
    replies: tuple[KeptReply, ...], new: KeptReply, acknowledged: int
) -> tuple[KeptReply, ...]:
    """Returns the replies to store with `new`: those after the position acknowledged, and `new`.

    Raises:
        Overloaded: There would be too many; the client sends too far ahead.
    """
    kept = (*(reply for reply in replies if reply.position > acknowledged), new)
    size_bytes = sum(len(reply.outputs) for reply in kept)
    if len(kept) > 1 and (len(kept) > MAX_KEPT_REPLIES or size_bytes > MAX_KEPT_REPLY_BYTES):
        raise Overloaded(
            f"{len(kept)} replies ({size_bytes} bytes) would be unacknowledged, at most "
            f"{MAX_KEPT_REPLIES} ({MAX_KEPT_REPLY_BYTES} bytes) are kept: wait for replies and "
            "send their position as acknowledged_position",
            retry_after_s=0.01,
        )
    return kept


def _open(stored: Record | None, claim: Claim) -> Verdict:
    if stored is not None and (claim.incarnation or claim.position):
        raise SessionClosed(f"the session was closed at position {stored.position}")
    if claim.position or claim.incarnation:
        raise SessionLost(
            "nothing is stored under this id, though the request means a session that ran: it has "
            "expired or the store has lost it; open it again to start from position 0"
        )
    if not claim.names_model:
        raise SessionNotFound("no session has this id; name a model to open it", field="model")
    return Verdict.OPEN


def _ahead(stored_position: int, claim: Claim) -> PositionGap | StoreRegressed:
    if claim.acknowledged is not None and claim.acknowledged > stored_position:
        return StoreRegressed(
            f"the reply to position {claim.acknowledged} was acknowledged, the store is back at "
            f"{stored_position}: send the tokens from there again",
            expected_position=stored_position,
        )
    return PositionGap(
        f"position is {claim.position}, the session stands at {stored_position}: tokens are missing",
        expected_position=stored_position,
    )


def _find_reply(stored: Record, claim: Claim) -> KeptReply | None:
    if claim.position is None:
        return None
    end = claim.position + claim.token_count
    for reply in stored.replies:
        same_place = reply.position == end and reply.token_count == claim.token_count
        if same_place and reply.digest == claim.digest:
            return reply
    return None


def _conflict(stored: Record, claim: Claim) -> PositionConflict:
    return PositionConflict(
        f"position is {claim.position}, the session stands at {stored.position}, and these are not "
        "the tokens applied there last",
        expected_position=stored.position,
    )
