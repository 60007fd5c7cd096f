"""Judges one session by what its clients sent and saw: are all replies those of one unbroken run? Pure.

A session lives in incarnations, one *life* each. In a life the acknowledged chunks must lie end to end by
position, each position with one token: the *tape*. A gap may only be filled by a request whose fate nobody
knows; the chain decides whether it was applied. The tape, run once from the start without a break, must
give the outputs of every reply. History digests of replies are held against the tokens first, which takes
no model and no outputs.

Where something differs, the checker says what happened, by positions first and then by trying out what
would explain the outputs: `findings.py` has the kinds.
"""

import itertools
from collections import Counter
from collections.abc import Iterable

from holdfast.verify.digests import DigestChain, DigestComparison
from holdfast.verify.findings import Findings
from holdfast.verify.gaps import Gaps
from holdfast.verify.life import Life
from holdfast.verify.life_order import incarnations_of
from holdfast.verify.network import Network
from holdfast.verify.origins import Origins
from holdfast.verify.outputs import OutputComparison
from holdfast.verify.session_history import SessionHistory

TOLERANCE = 1e-5
"""Absolute up to magnitude 1, relative above."""


def check(
    history: SessionHistory,
    network: Network | None,
    tolerance: float = TOLERANCE,
    origins: Origins | None = None,
) -> Findings:
    """Judges one session.

    Args:
        history: Of the session.
        network: Its model; None leaves outputs unchecked.
        tolerance: Largest difference of an output.
        origins: Finds what it had consumed before it was copied; None leaves outputs of copies unchecked.
    """
    findings = _count(history)
    _live_through(history, network, tolerance, findings, origins)
    return findings


def origins_of(histories: Iterable[SessionHistory]) -> Origins:
    """Returns what finds where copies come from, among all these sessions."""

    def live_through(history: SessionHistory) -> list[Life]:
        return _live_through(history, None, TOLERANCE, Findings(), origins)

    origins = Origins(histories, live_through)
    return origins


def _live_through(
    history: SessionHistory,
    network: Network | None,
    tolerance: float,
    findings: Findings,
    origins: Origins | None,
) -> list[Life]:
    """Judges the lives of a session, one after the other; returns them."""
    lives = [Life(history, incarnation, findings) for incarnation in incarnations_of(history)]
    for earlier, later in itertools.pairwise(lives):
        earlier.is_left_to(later)
    before: Life | None = None
    for place, life in enumerate(lives):
        if before is not None:
            life.go_on_from(before)
        life.go_on_from_checkpoint(lives[:place])
        if life.copy is not None and origins is not None:
            begin = origins.find(life.copy.position, life.copy.digest)
            if begin is not None and life.base == life.copy.position:
                life.begin_with(*begin)
        life.place()
        life.judge_ends(history)
        if before is not None and life.takeover is None and life.restore is None:
            deletions = (deletion.incarnation for deletion in history.deletions)
            life.judge_beginning(
                before, is_deleted=any(number in (0, before.incarnation) for number in deletions)
            )
        _compare(life, network, tolerance)
        before = life
    return lives


def _count(history: SessionHistory) -> Findings:
    findings = Findings(requests=len(history.attempts))
    sent: Counter[tuple[int, int, bytes]] = Counter()
    for attempt in history.attempts:
        if attempt.position is not None:
            sent[(attempt.incarnation, attempt.position, attempt.tokens.tobytes())] += 1
        if attempt.reason:
            findings.errors[attempt.reason] += 1
        if attempt.reply is not None:
            findings.replies += 1
            findings.replays += attempt.reply.replayed
    findings.retries = sum(count - 1 for count in sent.values())
    return findings


def _compare(life: Life, network: Network | None, tolerance: float) -> None:
    """Runs the tape of a life without a break and compares every reply with it."""
    standing = [piece for piece in life.pieces if life.stands(piece)]
    known = {piece.end: piece.reply.digest for piece in standing if piece.reply.digest}
    first = {life.base: life.first_digest} if life.first_digest else {}
    Gaps(life, network, tolerance, DigestChain(life.tape, first | known, life.seen)).fill()
    places = range(life.base, life.top)
    whole = next((place for place in places if place not in life.tape), life.top)
    pieces = sorted(
        (piece for piece in standing if life.base <= piece.start and piece.end <= whole),
        key=lambda piece: (piece.start, piece.end),
    )
    proven = DigestComparison(life).judge(pieces)
    pieces = [piece for piece in pieces if piece.end <= proven]
    if network is None or not life.knows_start:
        pieces = []
    life.findings.unchecked += sum(piece.end - piece.start for piece in standing) - sum(
        piece.end - piece.start for piece in pieces
    )
    if network is not None and pieces:
        OutputComparison(life, network, tolerance, whole).judge(pieces)
