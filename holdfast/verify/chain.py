"""Judges one session by what its clients sent and saw: are all replies those of one unbroken run? Pure.

A session lives in incarnations, one *life* each. In a life the acknowledged chunks must lie end to end by
position, each position with one token: the *tape*. A gap may only be filled by a request whose fate nobody
knows; the chain decides whether it was applied. The tape, run once from the start without a break, must
give the outputs of every reply.

Where it does not, the checker says what happened, by positions first and then by trying out what would
explain the outputs:

    lost        an acknowledged token is not in the state: a later position contradicts it, other tokens
                stand in its place, the last look at the session is behind it, or outputs are those of a
                run without it
    twice       a chunk was applied again: positions jumped by it, two replies say that each applied it
                though the store had not gone back, or outputs are those of a run that had it twice
    reordered   chunks were applied in another order than they were sent in
    wrong       outputs differ by more than the tolerance and none of these explains it, or a reply is that
                to another request
    unexplained tokens were applied that no recorded request sent
    unopened    tokens were accepted at the beginning of a session that no recorded request can have opened,
                or after it was deleted: only OpenSession and OpenBatch open one
    dependent   outputs differ, and the model itself gives a session something else beside others, or in
                other chunks; what was applied cannot be told from outputs then

History digests of replies are held against the tokens first, which takes no model and no outputs: one that
is not that of the tape tells of lost, doubled or reordered tokens if it is that of such a sequence, else it
is wrong.

Counts are tokens. A store that lost steps and said so (STORE_REGRESSED), and a client that sent them again,
are no loss; nor is a session that was lost as a whole and told everything again.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import INITIAL
from holdfast.verify.digests import DigestChain, after

TOLERANCE = 1e-5
"""Absolute up to magnitude 1, relative above."""

BACK = 3
"""Chunks before a wrong reply that are tried as lost or doubled."""

MAX_EXPLAINED = 16
"""Faults of one life that are explained; what follows counts as wrong."""

MAX_FILLINGS = 1024
"""Ways to fill a gap that are tried."""

FAULTS = ("lost", "twice", "reordered", "wrong", "unexplained", "unopened", "dependent")
"""Findings that break the promise."""

REGRESSIONS = ("STORE_REGRESSED", "POSITION_GAP")
ENDINGS = ("SESSION_EXPIRED",)

Arrays = dict[str, NDArray[Any]]


class Network(Protocol):
    """The model of a session, run alone."""

    def run(self, tokens: NDArray[Any], initial: Mapping[str, NDArray[Any]] | None) -> "Run":
        """Runs tokens from an initial state; None is the model's own."""
        ...

    def dependence(self, tokens: NDArray[Any]) -> str | None:
        """Says what the model's outputs depend on beside a session's own tokens, as these show it.

        Returns:
            None if on nothing else that could be found.
        """
        ...


class Run(Protocol):
    """What a run gave."""

    def differences(self, start: int, outputs: "Outputs") -> float:
        """Returns the largest difference of a reply from the outputs of tokens start .. start + k."""
        ...

    def state_after(self, count: int) -> Mapping[str, NDArray[Any]]:
        """Returns the state after so many tokens, from which another run can go on."""
        ...


@dataclass(slots=True)
class Outputs:
    """What a reply shows of k tokens; parts that nobody asked for are None or empty.

    Attributes:
        token_count: k.
        top_ids: (k, n), with `top_log_probs`.
        top_log_probs: (k, n).
        token_log_probs: (k,).
        tensors: Output name -> (k, ...).
        state: State name -> the state after the last token.
    """

    token_count: int
    top_ids: NDArray[Any] | None = None
    top_log_probs: NDArray[Any] | None = None
    token_log_probs: NDArray[Any] | None = None
    tensors: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)


@dataclass(slots=True)
class Reply:
    """An acknowledgement.

    Attributes:
        time_s: When it came.
        incarnation: Of the session.
        position: After the chunk.
        replayed: It says that the chunk had been applied before.
        outputs: What it shows.
        digest: History digest after the chunk; 0 is not given.
        is_foreign: It names another session or request than the one it answers.
    """

    time_s: float
    incarnation: int
    position: int
    replayed: bool
    outputs: Outputs
    digest: int = 0
    is_foreign: bool = False


@dataclass(slots=True)
class Attempt:
    """A chunk that was sent once.

    Attributes:
        time_s: When it was sent.
        tokens: (k,) or (k, width).
        position: Where it was meant to go; None is "append".
        incarnation: As asked; 0 is any.
        reply: Its acknowledgement, if there was one.
        reason: Why it failed; "" if it did not, or if its fate is unknown.
        expected_position: What the refusal said about the session.
    """

    time_s: float
    tokens: NDArray[Any]
    position: int | None
    incarnation: int
    reply: Reply | None = None
    reason: str = ""
    expected_position: int | None = None


@dataclass(slots=True)
class Sight:
    """A look at a session: it was opened, resumed or read.

    Attributes:
        sent_s: When the client asked.
        incarnation: Of the session.
        position: Where it stood.
        digest: History digest there; 0 is not given.
        is_opening: It was opened here; else it existed.
        took_over: The asker gave it this incarnation, and it went on.
        heard_s: When the answer came; None is at once.
        initial: State it was opened with; None is the model's own.
        state: State that was read; empty if none was.
    """

    sent_s: float
    incarnation: int
    position: int
    digest: int = 0
    is_opening: bool = False
    took_over: bool = False
    heard_s: float | None = None
    initial: Arrays | None = None
    state: Arrays = field(default_factory=dict)


class Deletion(NamedTuple):
    """A request to delete a session.

    Attributes:
        sent_s: When the client asked.
        incarnation: Asked to delete; 0 is any.
        closed_s: When it learnt that it was deleted; None if it did not.
    """

    sent_s: float
    incarnation: int
    closed_s: float | None = None


@dataclass(slots=True)
class SessionHistory:
    """All that is recorded of one session.

    Attributes:
        attempts: In the order in which they were sent.
        sights: In the order in which they were asked for.
        deletions: Requests to delete it.
        openings: When requests to open it were sent of which nobody knows whether they did.
        takeovers: The same of those to take it over.
    """

    attempts: list[Attempt] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    openings: list[float] = field(default_factory=list)
    takeovers: list[float] = field(default_factory=list)


@dataclass
class Findings:
    """What was found, in tokens where nothing else is said.

    Attributes:
        requests: Chunks sent, every attempt.
        replies: Acknowledged chunks.
        retries: Chunks sent again.
        replays: Replies that say so.
        errors: Refusals and failures, by reason.
        lost: See the head of this file, as for the next six.
        twice: As named.
        reordered: As named.
        wrong: As named.
        unexplained: As named.
        unopened: As named.
        dependent: As named.
        digests: Replies whose history digest was held against the tokens.
        unchecked: Acknowledged tokens whose outputs could not be recomputed.
        tokens: Acknowledged tokens that were recomputed.
        largest_difference: Of any output.
        notes: What is wrong, in words.
    """

    requests: int = 0
    replies: int = 0
    retries: int = 0
    replays: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    reordered: int = 0
    wrong: int = 0
    unexplained: int = 0
    unopened: int = 0
    dependent: int = 0
    digests: int = 0
    unchecked: int = 0
    tokens: int = 0
    largest_difference: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return not any(getattr(self, fault) for fault in FAULTS)

    def add(self, other: "Findings") -> None:
        """Adds those of another session."""
        counts = ("requests", "replies", "retries", "replays", "digests", "unchecked", "tokens")
        for name in (*counts, *FAULTS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors += other.errors
        self.largest_difference = max(self.largest_difference, other.largest_difference)


def check(history: SessionHistory, network: Network | None, tolerance: float = TOLERANCE) -> Findings:
    """Judges one session.

    Args:
        history: Of the session.
        network: Its model; None leaves outputs unchecked.
        tolerance: Largest difference of an output.
    """
    findings = _count(history)
    lives = [_Life(history, incarnation, findings) for incarnation in _incarnations(history)]
    for earlier, later in itertools.pairwise(lives):
        earlier.is_left_to(later)
    before: _Life | None = None
    for life in lives:
        if before is not None:
            life.go_on_from(before)
        life.place()
        life.judge_ends(history)
        if before is not None and life.takeover is None:
            deletions = (deletion.incarnation for deletion in history.deletions)
            life.judge_beginning(
                before, is_deleted=any(number in (0, before.incarnation) for number in deletions)
            )
        life.compare(network, tolerance)
        before = life
    return findings


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


def _incarnations(history: SessionHistory) -> list[int]:
    """Returns the lives of a session in the order in which they were lived.

    That is the order in which they were first seen. Where two began at the same time, as far as their
    openings tell, one that was taken over comes before the one that found it so; of two takeovers the one
    that found less, and then the one that left less; else the one that was left first.
    """
    seen: dict[int, _Evidence] = {}
    for sight in history.sights:
        one = seen.setdefault(sight.incarnation, _Evidence(sight.incarnation))
        one.add(sight.sent_s, sight.position, sight.digest)
        if sight.is_opening or sight.took_over:
            one.heard_s = sight.sent_s if sight.heard_s is None else sight.heard_s
        if sight.took_over:
            one.found = (sight.position, sight.digest)
    for attempt in history.attempts:
        if (reply := attempt.reply) is not None:
            one = seen.setdefault(reply.incarnation, _Evidence(reply.incarnation))
            one.add(attempt.time_s, reply.position, reply.digest)
    lives = sorted(seen.values(), key=lambda one: one.first_s)
    for _ in lives:
        for place in range(len(lives) - 1):
            one, other = lives[place : place + 2]
            if other.first_s <= one.heard_s and one.comes_after(other):
                lives[place : place + 2] = other, one
    return [one.incarnation for one in lives]


@dataclass(slots=True)
class _Evidence:
    """What tells when a life was lived.

    Attributes:
        incarnation: Its number.
        first_s, last_s: When the first and the last request was sent that found it.
        heard_s: When it was known to have begun.
        found: Position and digest at which it took over another one.
        places: Positions and digests that were seen of it.
    """

    incarnation: int
    first_s: float = math.inf
    last_s: float = -math.inf
    heard_s: float = -math.inf
    found: tuple[int, int] | None = None
    places: set[tuple[int, int]] = field(default_factory=set)

    def add(self, sent_s: float, position: int, digest: int) -> None:
        """Takes a request that found it, and where."""
        self.first_s, self.last_s = min(self.first_s, sent_s), max(self.last_s, sent_s)
        self.places.add((position, digest))

    def comes_after(self, other: "_Evidence") -> bool:
        """Whether it was lived after one that began at the same time."""
        went_on, was_gone_on_from = self.found in other.places, other.found in self.places
        if went_on != was_gone_on_from:
            return went_on
        if self.found and other.found:
            ends, other_ends = (self.found[0], max(self.places)[0]), (other.found[0], max(other.places)[0])
            if ends != other_ends:
                return ends > other_ends
        return self.last_s > other.last_s


@dataclass(slots=True)
class _Piece:
    """An acknowledged chunk at its place."""

    start: int
    end: int
    attempt: Attempt
    reply: Reply

    @property
    def is_moved(self) -> bool:
        return self.attempt.position is not None and self.attempt.position != self.start


class _Life:
    """One incarnation."""

    def __init__(self, history: SessionHistory, incarnation: int, findings: Findings) -> None:
        self.incarnation = incarnation
        self.findings = findings
        self.sights = [sight for sight in history.sights if sight.incarnation == incarnation]
        self.seen = {(sight.position, sight.digest) for sight in self.sights}
        self.acknowledged = [
            attempt
            for attempt in history.attempts
            if attempt.reply is not None and attempt.reply.incarnation == incarnation
        ]
        self.open_fates = [
            attempt
            for attempt in history.attempts
            if attempt.reply is None and attempt.incarnation in (0, incarnation)
        ]
        self.reasons = {attempt.reason for attempt in self.open_fates}
        opening = next((sight for sight in self.sights if sight.is_opening), None)
        takeover = next((sight for sight in self.sights if sight.took_over), None)
        first = opening or takeover or (self.sights[0] if self.sights else None)
        self.base = 0 if opening else self._first_place()
        self.knows_start = self.base == 0
        self.initial = opening.initial if opening else None
        self.first_digest = self._first_digest(opening)
        if first is not None and first.state and first.position == self.base:
            self.initial, self.knows_start = first.state, True
        self.prefix: list[NDArray[Any]] = []
        self.tape: dict[int, NDArray[Any]] = {}
        self.pieces: list[_Piece] = []
        self.unsure: list[int] = []  # ends of gaps that were filled by one of several ways, unconfirmed
        self.takeover = takeover or self._unheard_takeover(history, first)
        self.top = self.base  # position up to which tokens are acknowledged or were seen

    def _unheard_takeover(self, history: SessionHistory, first: Sight | None) -> Sight | None:
        """Returns where it was first seen, if a request without an answer may have taken it over."""
        if first is None or first.is_opening:
            return None
        sent_s = first.sent_s if first.heard_s is None else first.heard_s
        return first if any(asked_s < sent_s for asked_s in history.takeovers) else None

    def _first_place(self) -> int:
        """Returns where the record begins of a session that nobody was seen to open."""
        places = [sight.position for sight in self.sights]
        places += [attempt.position for attempt in self.acknowledged if attempt.position is not None]
        places += [
            attempt.reply.position - len(attempt.tokens)
            for attempt in self.acknowledged
            if attempt.reply is not None and attempt.position is None
        ]
        return min(places)

    def _first_digest(self, opening: Sight | None) -> int:
        """Returns the digest where the record begins; 0 if unknown, or if the store went back behind it."""
        if opening is not None and opening.initial is None:
            return INITIAL
        places = (attempt.expected_position for attempt in self.open_fates if attempt.reason in REGRESSIONS)
        if any(place is not None and place < self.base for place in places):
            return 0
        return next((sight.digest for sight in self.sights if sight.position == self.base), 0)

    def is_left_to(self, later: "_Life") -> None:
        """Keeps where a takeover found it."""
        if later.takeover is not None:
            self.seen.add((later.takeover.position, later.takeover.digest))

    def go_on_from(self, before: "_Life") -> None:
        """After a takeover the state is that of the life before, where it was taken over."""
        if self.takeover is None:
            return
        self.base = self.takeover.position
        self.first_digest = self.takeover.digest
        end = max((piece.end for piece in before.pieces), default=before.base)
        self._miss(end - self.base, f"a takeover found position {self.base}")
        places = range(before.base, self.base)
        self.knows_start = before.knows_start and all(place in before.tape for place in places)
        self.initial = before.initial
        if self.knows_start:
            self.prefix = before.prefix + [before.tape[place] for place in places]

    def judge_beginning(self, before: "_Life", *, is_deleted: bool) -> None:
        """Holds a session that began anew, though nobody deleted it, against the life before.

        Where its client has sent the tokens again, nothing is lost.
        """
        if is_deleted or before.reasons.intersection(ENDINGS):
            return
        told = {
            place: token
            for piece in before.pieces
            for place, token in zip(range(piece.start, piece.end), piece.attempt.tokens, strict=True)
        }
        lost = [
            place
            for place, token in told.items()
            if place not in self.tape or not self._holds(place, token)
        ]
        self._miss(len(lost), "the session began anew though nobody deleted it")

    def judge_ends(self, history: SessionHistory) -> None:
        """Finds tokens accepted before the session can have been opened, and after it was deleted.

        A record may begin in the middle of a life; a life seen from position 0 must have an opening.
        """
        if not self.pieces:
            return
        first = min(self.pieces, key=lambda piece: (piece.start, piece.reply.time_s))
        asked_s = [sight.sent_s for sight in self.sights] + history.openings
        if first.start == 0 and not any(sent_s < first.reply.time_s for sent_s in asked_s):
            self.findings.unopened += first.end
            self.note("the session was stepped from position 0, and no recorded request opened it")
        began_s = min(piece.reply.time_s for piece in self.pieces)
        for deletion in history.deletions:
            meant = deletion.incarnation == self.incarnation or (
                deletion.incarnation == 0 and began_s < deletion.sent_s
            )
            if meant and deletion.closed_s is not None:
                late = [piece for piece in self.pieces if piece.attempt.time_s > deletion.closed_s]
                if late:
                    self.findings.unopened += sum(piece.end - piece.start for piece in late)
                    self.note(f"a chunk at {late[0].start} was accepted after the session was deleted")
                    return

    def _miss(self, count: int, why: str) -> None:
        if count > 0:
            self.findings.lost += count
            self.note(f"{count} acknowledged tokens are lost: {why}")

    def note(self, text: str) -> None:
        """Says what is wrong."""
        self.findings.notes.append(text)

    # -- positions ----------------------------------------------------------------------------

    def place(self) -> None:
        """Lays the acknowledged chunks out by position."""
        for attempt in self.acknowledged:
            reply = attempt.reply
            assert reply is not None, "bug: acknowledged without a reply"
            if reply.is_foreign or reply.outputs.token_count not in (0, len(attempt.tokens)):
                self.findings.wrong += len(attempt.tokens)
                self.note(f"the reply to the chunk at {attempt.position} is that to another request")
                continue
            start = reply.position - len(attempt.tokens)
            self.pieces.append(_Piece(start, reply.position, attempt, reply))
        seen = [piece.end for piece in self.pieces] + [sight.position for sight in self.sights]
        self.top = max([self.base, *seen])
        doubled = self._judge_moved()
        missed = self._lay()
        self._miss(missed - self.findings.lost, "other tokens stand in their place")
        self._fill_doubled(doubled)
        self._judge_applied_again()
        self._judge_last_look()

    def _judge_moved(self) -> list[tuple[int, int]]:
        """Judges chunks that were applied elsewhere than they were sent to; returns the jumps.

        Chunks that changed places cover the same positions as they were meant to. Else a step of the
        offset up is something applied again, and a step down is something forgotten.
        """
        meant = [piece for piece in self.pieces if piece.attempt.position is not None]
        meant.sort(key=lambda piece: (piece.attempt.position or 0, piece.reply.time_s))
        moved = [piece for piece in meant if piece.is_moved]
        if not moved:
            return []
        wanted = {place + (piece.attempt.position or 0) - piece.start for piece in moved
                  for place in range(piece.start, piece.end)}  # fmt: skip
        actual = {place for piece in moved for place in range(piece.start, piece.end)}
        if wanted == actual:
            self.findings.reordered += len(actual)
            self.note(f"chunks at positions {min(actual)}..{max(actual) + 1} were applied in another order")
            return []
        jumps = []
        offset = 0
        for piece in meant:
            now = piece.start - (piece.attempt.position or 0)
            if now > offset:
                self.findings.twice += now - offset
                jumps.append((piece.start - (now - offset), now - offset))
                self.note(f"{now - offset} tokens before position {piece.start} were applied twice")
            elif now < offset:
                self._miss(
                    offset - now, f"the chunk sent to {piece.attempt.position} went to {piece.start}"
                )
            offset = now
        return jumps

    def _lay(self) -> int:
        """Fills the tape, the latest reply last; returns the acknowledged tokens that others replaced."""
        by_time = sorted(self.pieces, key=lambda piece: piece.reply.time_s)
        for piece in by_time:
            self.tape.update(zip(range(piece.start, piece.end), piece.attempt.tokens, strict=True))
        replaced = {
            (piece.start + index, token.tobytes())
            for piece in self.pieces
            for index, token in enumerate(piece.attempt.tokens)
            if not self._holds(piece.start + index, token)
        }
        return len(replaced)

    def _fill_doubled(self, jumps: list[tuple[int, int]]) -> None:
        for place, size in jumps:
            if all(source in self.tape for source in range(place - size, place)):
                for target in range(place, place + size):
                    self.tape.setdefault(target, self.tape[target - size])

    def _judge_applied_again(self) -> None:
        """Finds tokens that two replies claim to have applied, though the store had not gone back."""
        evidence = [
            attempt.expected_position
            for attempt in self.open_fates
            if attempt.reason in REGRESSIONS and attempt.expected_position is not None
        ]
        limit = min(evidence, default=self.top)
        applied: Counter[tuple[int, bytes]] = Counter()
        for piece in self.pieces:
            if not piece.reply.replayed:
                for index, token in enumerate(piece.attempt.tokens[: max(0, limit - piece.start)]):
                    applied[(piece.start + index, token.tobytes())] += 1
        again = sum(count - 1 for count in applied.values())
        if again:
            self.findings.twice += again
            self.note(f"two replies each say that they applied the same tokens, {again} of them")

    def _judge_last_look(self) -> None:
        """Compares what was acknowledged with the last look at the session."""
        end = max((piece.end for piece in self.pieces), default=self.base)
        seen_s = max((piece.reply.time_s for piece in self.pieces), default=0.0)
        later = [sight for sight in self.sights if sight.sent_s > seen_s]
        if later:
            position = later[-1].position
            self._miss(end - position, f"the session was last seen at {position}, {end} was acknowledged")

    # -- outputs ------------------------------------------------------------------------------

    def compare(self, network: Network | None, tolerance: float) -> None:
        """Runs the tape without a break and compares every reply with it."""
        standing = [piece for piece in self.pieces if self._stands(piece)]
        known = {piece.end: piece.reply.digest for piece in standing if piece.reply.digest}
        first = {self.base: self.first_digest} if self.first_digest else {}
        chain = DigestChain(self.tape, first | known, self.seen)
        self._explain_gaps(network, tolerance, chain)
        places = range(self.base, self.top)
        whole = next((place for place in places if place not in self.tape), self.top)
        pieces = sorted(
            (piece for piece in standing if self.base <= piece.start and piece.end <= whole),
            key=lambda piece: (piece.start, piece.end),
        )
        proven = _Digests(self).judge(pieces)
        pieces = [piece for piece in pieces if piece.end <= proven]
        if network is None or not self.knows_start:
            pieces = []
        self.findings.unchecked += sum(piece.end - piece.start for piece in standing) - sum(
            piece.end - piece.start for piece in pieces
        )
        if network is not None and pieces:
            _Comparison(self, network, tolerance, whole).judge(pieces)

    def _stands(self, piece: _Piece) -> bool:
        places = itertools.count(piece.start)
        return all(map(self._holds, places, piece.attempt.tokens))

    def _holds(self, place: int, token: NDArray[Any]) -> bool:
        held = self.tape[place]
        return held is token or bool((held == token).all())

    def _explain_gaps(self, network: Network | None, tolerance: float, chain: DigestChain) -> None:
        place = self.base
        while place < self.top:
            if place in self.tape:
                place += 1
                continue
            end = next((other for other in range(place, self.top) if other in self.tape), self.top)
            filling = self._choose(place, end, network, tolerance, chain)
            if filling is None:
                self.findings.unexplained += end - place
                self.note(f"positions {place}..{end} were applied, and no recorded request explains it")
            else:
                for attempt, start in filling:
                    self.tape.update(zip(itertools.count(start), attempt.tokens, strict=False))
            place = end

    def _choose(
        self, start: int, end: int, network: Network | None, tolerance: float, chain: DigestChain
    ) -> list[tuple[Attempt, int]] | None:
        """Returns the requests of open fate that fill a gap; of several ways that which is confirmed.

        By a digest that is said later, or else by outputs; without one the next digest is not judged.
        """
        fillings = list(itertools.islice(self._fillings(start, end), MAX_FILLINGS))
        for filling in fillings if len(fillings) > 1 else ():
            if chain.leads_on(start, [token for attempt, _ in filling for token in attempt.tokens]):
                return filling
        if len(fillings) > 1:
            self.unsure.append(end)
        if len(fillings) < 2 or network is None or not self.knows_start:
            return fillings[0] if fillings else None
        after = next((piece for piece in self.pieces if piece.start == end), None)
        if after is None or any(place not in self.tape for place in range(self.base, start)):
            return fillings[0]
        before = [*self.prefix, *(self.tape[place] for place in range(self.base, start))]
        state: Mapping[str, NDArray[Any]] | None = self.initial
        if before:
            state = network.run(np.array(before), self.initial).state_after(len(before))
        for filling in fillings:
            tokens = [token for attempt, _ in filling for token in attempt.tokens]
            run = network.run(np.array([*tokens, *after.attempt.tokens]), state)
            if run.differences(len(tokens), after.reply.outputs) <= tolerance:
                return filling
        return fillings[0]

    def _fillings(self, start: int, end: int) -> Iterator[list[tuple[Attempt, int]]]:
        """Yields the ways to lay requests of open fate end to end from one position to another.

        The latest first: who found the session further on sent nothing there any more, and what was sent
        earlier is more likely to have found it elsewhere.
        """
        tried: set[bytes] = set()
        for attempt in reversed(self.open_fates):
            size = len(attempt.tokens)
            if attempt.position not in (None, start) or not 0 < size <= end - start:
                continue
            name = attempt.tokens.tobytes()
            if name in tried:
                continue
            tried.add(name)
            if start + size == end:
                yield [(attempt, start)]
            else:
                for rest in self._fillings(start + size, end):
                    yield [(attempt, start), *rest]


class _Digests:
    """Holds the digests of replies against the tape of a life, and explains what differs."""

    def __init__(self, life: _Life) -> None:
        self._life = life
        self._known = {life.base: life.first_digest} if life.first_digest else {}

    def judge(self, pieces: Sequence[_Piece]) -> int:
        """Judges the digests of pieces.

        Returns:
            The position up to which none contradicts the tape; outputs after it say nothing new.
        """
        pieces = sorted(pieces, key=lambda piece: piece.end)
        proven = self._life.top
        reached = explained = self._life.base
        for index, piece in enumerate(pieces):
            claimed = piece.reply.digest
            if not claimed or piece.start < explained:
                continue
            expected = self._expected(reached, piece.end)
            if expected is not None:
                self._life.findings.digests += 1
                if claimed != expected:
                    proven = min(proven, piece.start)
                    if size := self._explain(pieces, index):
                        reached = explained = piece.end + size
            reached = max(reached, piece.end)
            self._known[reached] = claimed
        return proven

    def _expected(self, start: int, end: int) -> int | None:
        """Returns the digest that a reply must have, given the one before it."""
        is_unsure = any(start < gap <= end for gap in self._life.unsure)
        if start not in self._known or is_unsure:
            return None
        return after(self._known[start], self._told(start, end))

    def _told(self, start: int, end: int) -> list[NDArray[Any]]:
        return [self._life.tape[place] for place in range(start, end)]

    def _explain(self, pieces: Sequence[_Piece], index: int) -> int:
        """Counts what else the history of a reply held; returns the tokens after it that this explains."""
        piece, life = pieces[index], self._life
        place = f"{piece.start}..{piece.end}"
        for kind, size, start, tokens in self._hypotheses(pieces, index):
            if start in self._known and after(self._known[start], tokens) == piece.reply.digest:
                setattr(life.findings, kind, getattr(life.findings, kind) + size)
                what = {"lost": "without", "twice": "with twice", "reordered": "after"}[kind]
                life.note(
                    f"the history digest of the reply to {place} is that of a run {what} {size} tokens"
                )
                return size if kind == "reordered" else 0
        life.findings.wrong += piece.end - piece.start
        life.note(f"the history digest of the reply to {place} is not that of the tokens up to there")
        return 0

    def _hypotheses(
        self, pieces: Sequence[_Piece], index: int
    ) -> Iterator[tuple[str, int, int, list[NDArray[Any]]]]:
        """Yields kind and size of a fault, a position, and the tokens that would have followed it."""
        piece = pieces[index]
        for earlier in reversed(pieces[max(0, index - BACK) : index]):
            size = earlier.end - earlier.start
            rest = self._told(earlier.end, piece.end)
            if earlier.end <= piece.start:
                yield "lost", size, earlier.start, rest
                yield "twice", size, earlier.end, [*earlier.attempt.tokens, *rest]
        for following in pieces[index + 1 :]:
            if following.start == piece.end:
                size = following.end - following.start
                yield "reordered", size, piece.start, [*following.attempt.tokens, *piece.attempt.tokens]
                return


class _Comparison:
    """Compares the replies of a life with the run of its tape, and explains what differs."""

    def __init__(self, life: _Life, network: Network, tolerance: float, whole: int) -> None:
        self._life = life
        self._network = network
        self._tolerance = tolerance
        self._whole = whole
        self._explained = 0
        self._restart(life.base, list(life.prefix))

    def _restart(self, base: int, before: list[NDArray[Any]]) -> None:
        """From a position on, what is expected follows these tokens."""
        self._base, self._before = base, before
        tokens = before + [self._life.tape[place] for place in range(base, self._whole)]
        self._run = self._network.run(np.array(tokens), self._life.initial)

    def judge(self, pieces: Sequence[_Piece]) -> None:
        """Compares pieces in the order of their positions."""
        findings = self._life.findings
        for index, piece in enumerate(pieces):
            findings.tokens += piece.end - piece.start
            if piece.start < self._base:
                continue  # explained together with the piece before it
            difference = self._difference(piece)
            if difference > self._tolerance and self._is_dependent():
                findings.dependent += piece.end - piece.start
            elif difference > self._tolerance:
                explained = self._explain(pieces, index)
                difference = difference if explained is None else explained
                if difference > self._tolerance:
                    findings.wrong += piece.end - piece.start
                    self._life.note(f"the reply to {piece.start}..{piece.end} is off by {difference:.2g}")
            findings.largest_difference = max(findings.largest_difference, difference)

    def _is_dependent(self) -> bool:
        return self._network.dependence(np.array(self._told(self._whole))) is not None

    def _difference(self, piece: _Piece) -> float:
        start = len(self._before) + piece.start - self._base
        return self._run.differences(start, piece.reply.outputs)

    def _explain(self, pieces: Sequence[_Piece], index: int) -> float | None:
        """Finds what else the state held before a piece, if that gives its outputs; goes on from there.

        Returns:
            The difference that is left; None without an explanation.
        """
        if self._explained >= MAX_EXPLAINED:
            return None
        piece = pieces[index]
        for kind, size, common, rest in self._hypotheses(pieces, index):
            tokens = np.array([*rest, *piece.attempt.tokens])
            run = self._network.run(tokens, self._run.state_after(common))
            difference = run.differences(len(rest), piece.reply.outputs)
            if difference <= self._tolerance:
                self._explained += 1
                setattr(self._life.findings, kind, getattr(self._life.findings, kind) + size)
                what = {"lost": "without", "twice": "with twice", "reordered": "after"}[kind]
                place = f"{piece.start}..{piece.end}"
                self._life.note(f"the reply to {place} is that of a run {what} {size} tokens")
                after = [*self._told(piece.start)[:common], *rest, *piece.attempt.tokens]
                self._restart(piece.end + size if kind == "reordered" else piece.end, after)
                return difference
        return None

    def _told(self, place: int) -> list[NDArray[Any]]:
        """Returns what is expected to stand before a position."""
        return self._before + [self._life.tape[place] for place in range(self._base, place)]

    def _hypotheses(
        self, pieces: Sequence[_Piece], index: int
    ) -> Iterator[tuple[str, int, int, list[NDArray[Any]]]]:
        """Yields kind and size of a fault, how many tokens were as expected, and those that followed."""
        piece = pieces[index]
        before = self._told(piece.start)
        end = len(before)
        for earlier in reversed(pieces[max(0, index - BACK) : index]):
            size = earlier.end - earlier.start
            if earlier.end > piece.start or size > end:
                continue
            yield "lost", size, end - size, before[end:]
            yield "twice", size, end, before[end - size : end] + before[end:]
            end -= size
        following = [other for other in pieces[index + 1 :] if other.start == piece.end][:1]
        for other in following:
            yield "reordered", len(other.attempt.tokens), len(before), list(other.attempt.tokens)
