"""Decides what a chunk is: a step to run, a retry to answer, or a mistake. Pure.

Exactly once rests on three facts. A record is replaced only if the history it holds is the one that its
successor was computed from, so a chunk commits at most once. A chunk names its position, and the history
before it by a digest, so it is recognised when it comes again. And the reply is stored with the state, so
the second answer is the first one.

Let n be the stored position and d the history digest there; p and h the chunk's position and the digest it
means there, k its tokens, a the position whose reply the client has.

    p = n, h = d or not said            run
    p = n otherwise                     HistoryConflict(n): other tokens than the client's lead to n
    p < n, reply to p, h and k kept     replay
    p < n otherwise                     PositionConflict(n)
    p > n, a > n                        StoreRegressed(n): the store forgot acknowledged steps
    p > n otherwise                     PositionGap(n)
    no p                                run at n

A reply is that to the chunk if it ends where the chunk does and its digest is that of the chunk's tokens
after the history before them.

No chunk opens a session: what is stored may be nothing, and that can be proof of a loss, never of a
beginning. Or a tombstone: then the session was deleted. Or a session in quarantine: then nothing runs, only
replies that are kept are given again.

Not every answer may come from memory: a replica that was paused remembers an old position. Running on
an old state is harmless, the commit refuses it. A refusal or a replay is final, so the caller of
`decide` makes sure that `stored` is what the store holds before it passes one on.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import (
    DeadlinePassed,
    Draining,
    HistoryConflict,
    InvalidRequest,
    Overloaded,
    PositionConflict,
    PositionGap,
    SessionDeleted,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionQuarantined,
    StoreRegressed,
)
from holdfast.history_digest import MAX_NUMBER, run_of
from service.store.record import (
    MAX_POSITION,
    REPLY_BYTES,
    KeptReply,
    Record,
    Tail,
    encode_replies,
    replies_after,
)

MAX_KEPT_REPLIES = 64
MAX_KEPT_REPLY_BYTES = 64 * 1024
"""Bounds on what a record keeps for retries, so that it stays within a few network packets."""


class Claim(NamedTuple):
    """What a chunk says of itself.

    Attributes:
        token_count: k >= 1.
        tokens: Bytes, ids (k,) or features (k, width).
        position: Tokens before it, >= 0; None is "append".
        acknowledged: Position of the last reply the client has; None if it does not say.
        incarnation: Incarnation the client means; 0 is any.
        digest: History digest that the client means at `position`; 0 is any.
    """

    token_count: int
    tokens: bytes | NDArray[Any]
    position: int | None = None
    acknowledged: int | None = None
    incarnation: int = 0
    digest: int = 0


def check(claim: Claim) -> None:
    """Refuses a claim that would be wrong whatever is stored.

    Raises:
        InvalidRequest: A number is out of its range.
    """
    for name in ("incarnation", "digest"):
        if not 0 <= getattr(claim, name) <= MAX_NUMBER:
            field = "history_digest" if name == "digest" else name
            raise InvalidRequest(
                f"{field} is {getattr(claim, name)}, expected 1..2^53 - 1, or 0 for any", field=field
            )
    if claim.position is None and claim.digest:
        raise InvalidRequest("history_digest is given without position", field="history_digest")
    if claim.position is not None and not 0 <= claim.position <= MAX_POSITION - claim.token_count:
        raise InvalidRequest(
            f"position is {claim.position}, expected 0..2^53 - 1, the chunk's {claim.token_count} tokens "
            "included",
            field="position",
        )
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


def decide(stored: Record | None, claim: Claim) -> KeptReply | None:
    """Says what a chunk is, given what is stored.

    Returns:
        None: it runs at the stored position. A kept reply: it ran before, and this is what it gave.

    Raises:
        SessionNotFound, SessionLost, SessionDeleted: The session does not exist.
        PositionConflict, HistoryConflict, PositionGap, StoreRegressed: The chunk does not continue the
            session.
        SessionQuarantined: It is held, and the chunk is none of those whose replies are kept.
        InvalidRequest: The session would consume more tokens than a position can count.
    """
    if stored is None:
        raise _not_there(claim)
    if stored.deleted:
        raise SessionDeleted(
            f"the session was deleted at position {stored.position}; open it to begin anew"
        )
    check_incarnation(stored, claim.incarnation)
    reply = _find_reply(stored, claim)
    if reply is not None:
        return reply
    if stored.quarantine_reason:
        raise quarantined(stored)
    if claim.position is not None and claim.position != stored.position:
        if claim.position > stored.position:
            raise _ahead(stored.position, claim)
        raise _conflict(stored, claim)
    if claim.digest not in (0, stored.digest):
        raise _other_history(stored)
    if stored.position > MAX_POSITION - claim.token_count:
        raise InvalidRequest(f"the session stands at position {stored.position}, the last is 2^53 - 1")
    return None


def quarantined(stored: Record) -> SessionQuarantined:
    """Returns the refusal of all that would run a session in quarantine."""
    return SessionQuarantined(
        f"the session is held at position {stored.position} until an administrator releases it: "
        f"{stored.quarantine_reason}",
        expected_position=stored.position,
    )


def expired(ttl_s: float) -> SessionExpired:
    """Returns the refusal of a chunk whose session was idle for too long."""
    return SessionExpired(
        f"the session was idle for more than {ttl_s:g} s; open it again to start from position 0"
    )


def late() -> DeadlinePassed:
    """Returns the refusal of chunks that nobody waits for."""
    return DeadlinePassed("the caller no longer waits; nothing was run")


def draining() -> Draining:
    """Returns the refusal of chunks that come, or wait, while the server leaves."""
    return Draining("this server is leaving; another one takes the request", retry_after_s=0.05)


def check_incarnation(stored: Record, meant: int) -> None:
    """Makes sure that a session is in the incarnation that a request means, 0 being any.

    Which of two incarnations came first is not known, nor who is to blame: the numbers are random, so that
    nobody can hit one. Nor is the stored one told.

    Raises:
        SessionDeleted: It is in another one.
    """
    if meant not in (0, stored.incarnation):
        raise SessionDeleted(
            f"incarnation {meant} is not that of the stored session, which stands at position "
            f"{stored.position}; open the session to get its incarnation",
            expected_position=stored.position,
        )


def continues(
    stamps: NDArray[np.int64],
    positions: NDArray[np.int64],
    incarnations: NDArray[np.int64] | None,
    digests: NDArray[np.int64] | None,
    token_count: int,
) -> NDArray[np.bool_]:
    """Tells which of B chunks just run: those for which `decide` gives None.

    Args:
        stamps: Incarnation, position and history digest of each session, (B, 3).
        positions: Claimed, (B,); negative is none.
        incarnations: Meant, (B,); 0 is any; None is any for all.
        digests: Meant at the position, (B,); 0 is any; None is any for all.
        token_count: Of each chunk.
    """
    runs: NDArray[np.bool_] = positions == stamps[:, 1]
    if np.count_nonzero(runs) < len(runs):
        runs |= (positions < 0) & (stamps[:, 1] <= MAX_POSITION - token_count)
    if incarnations is not None:
        runs &= (incarnations == 0) | (incarnations == stamps[:, 0])
    if digests is not None:
        runs &= (digests == 0) | (digests == stamps[:, 2])
    return runs


def sends_ahead(stamps: NDArray[np.int64], acknowledged: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tells whose clients have not acknowledged the last chunk, so that its reply is kept on.

    Args:
        stamps: Incarnation, position and history digest of each session, (B, 3).
        acknowledged: Position of the last reply that each client has, (B,); negative is not said.
    """
    is_ahead: NDArray[np.bool_] = (acknowledged >= 0) & (acknowledged < stamps[:, 1])
    return is_ahead


def keep_replies(replies: bytes, new: KeptReply, acknowledged: int) -> Tail:
    """Returns the replies to store with `new`: those after the position acknowledged, and `new`.

    Args:
        replies: Encoded: a client far ahead has dozens, and each chunk adds one to them.
        new: Of the chunk that ran.
        acknowledged: Position of the last reply that the client has.

    Raises:
        Overloaded: There would be too many; the client sends too far ahead.
        RecordCorrupt: `replies` is not what `encode_replies` gives.
    """
    kept = replies_after(replies, acknowledged)
    count, data = kept.reply_count + 1, kept.data + encode_replies((new,))
    size_bytes = len(data) - count * REPLY_BYTES
    if count > 1 and (count > MAX_KEPT_REPLIES or size_bytes > MAX_KEPT_REPLY_BYTES):
        raise Overloaded(
            f"{count} replies ({size_bytes} bytes) would be unacknowledged, at most "
            f"{MAX_KEPT_REPLIES} ({MAX_KEPT_REPLY_BYTES} bytes) are kept: wait for replies and "
            "send their position as acknowledged_position",
            retry_after_s=0.01,
        )
    return Tail(count, data)


def _not_there(claim: Claim) -> SessionLost | SessionNotFound:
    if claim.position or claim.incarnation:
        return SessionLost(
            "nothing is stored under this id, though the request means a session that was opened: it has "
            "expired or the store has lost it; open it again to start from position 0"
        )
    return SessionNotFound("no session has this id: open it first, with OpenSession", field="session_id")


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
        if (
            reply.position == end
            and reply.token_count == claim.token_count
            and claim.digest in (0, reply.digest_before)
            and run_of(claim.tokens).after(reply.digest_before) == reply.digest
        ):
            return reply
    return None


def _conflict(stored: Record, claim: Claim) -> PositionConflict:
    return PositionConflict(
        f"position is {claim.position}, the session stands at {stored.position}, and these are not "
        "the tokens applied there last",
        expected_position=stored.position,
    )


def _other_history(stored: Record) -> HistoryConflict:
    return HistoryConflict(
        f"the session stands at position {stored.position}, but other tokens lead there than those of the "
        "history_digest sent, as when the store has lost acknowledged steps and a writer went on from what "
        "was left; open the session again to go on from what is stored",
        expected_position=stored.position,
    )
