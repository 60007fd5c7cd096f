"""One life of a session: its acknowledged chunks laid out by position, and judged by positions. Pure."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import INITIAL, digest_after
from holdfast.verify.findings import Findings
from holdfast.verify.session_history import Attempt, Reply, SessionHistory, Sight

REGRESSIONS = ("STORE_REGRESSED", "POSITION_GAP")
ENDINGS = ("SESSION_EXPIRED",)

BACK = 3
"""Chunks before a wrong reply that are tried as lost or doubled."""


@dataclass(slots=True)
class Piece:
    """An acknowledged chunk at its place."""

    start: int
    end: int
    attempt: Attempt
    reply: Reply

    @property
    def is_moved(self) -> bool:
        """It was applied elsewhere than it was sent to."""
        return self.attempt.position is not None and self.attempt.position != self.start


class Life:
    """One incarnation.

    Attributes:
        sights: Of it.
        seen: Positions and digests at which it was seen.
        generated: Positions behind which a generation that was broken off may have applied tokens.
        open_fates: Requests that may belong to it and were not acknowledged.
        base, top: Where the record of it begins, and up to where tokens are acknowledged or were seen.
        first_digest: History digest at `base`; 0 is unknown.
        knows_start: What was applied before `base` is known: `prefix`, from the state `initial`.
        tape: Token at each position.
        pieces: Its acknowledged chunks.
        unsure: Ends of gaps that were filled by one of several ways, unconfirmed.
        takeover: Where it went on from the life before; None if it did not.
        restore: Where it went on from a checkpoint, as far as that is known; None if it did not.
        copy: Where it began as a copy; None if it did not.
    """

    def __init__(self, history: SessionHistory, incarnation: int, findings: Findings) -> None:
        self.incarnation = incarnation
        self.findings = findings
        self.sights = [sight for sight in history.sights if sight.incarnation == incarnation]
        self.seen = {(sight.position, sight.digest) for sight in self.sights if sight.digest}
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
        self.generated = {
            generation.position
            for generation in history.generations
            if generation.incarnation in (0, incarnation)
        }
        self.reasons = {attempt.reason for attempt in self.open_fates}
        opening = next((sight for sight in self.sights if sight.is_opening), None)
        takeover = next((sight for sight in self.sights if sight.took_over), None)
        restore = next((sight for sight in self.sights if sight.was_put_back), None)
        self.copy = next((sight for sight in self.sights if sight.is_copy), None)
        first = opening or takeover or restore or (self.sights[0] if self.sights else None)
        self.base = 0 if opening else self._first_place()
        self.knows_start = self.base == 0
        self.initial = opening.initial if opening else None
        self.first_digest = self._first_digest(opening)
        if first is not None and first.state and first.position == self.base:
            self.initial, self.knows_start = first.state, True
        self.prefix: list[NDArray[Any]] = []
        self.tape: dict[int, NDArray[Any]] = {}
        self.pieces: list[Piece] = []
        self.unsure: list[int] = []
        self.restore = restore or self._unheard_restore(history, first)
        self.takeover = None if self.restore else takeover or self._unheard_takeover(history, first)
        self.top = self.base

    def _unheard_takeover(self, history: SessionHistory, first: Sight | None) -> Sight | None:
        """Returns where it was first seen, if a request without an answer may have taken it over.

        That may also be an earlier attempt of one that took over again, later, what others had taken over.
        """
        first = first or self._first_step()
        if first is None or first.is_opening:
            return None
        retried = (
            sight.asked_s
            for sight in history.sights
            if sight.took_over and sight.asked_s is not None and sight.asked_s < sight.sent_s
            and first.sent_s < sight.known_s
        )  # fmt: skip
        asked = (*history.takeovers, *retried)
        return first if any(asked_s < first.known_s for asked_s in asked) else None

    def _unheard_restore(self, history: SessionHistory, first: Sight | None) -> Sight | None:
        """Returns where it was first seen, if a request without an answer may have put it back."""
        first = first or self._first_step()
        if first is None or first.is_opening or first.took_over:
            return None
        return first if any(sent_s < first.known_s for sent_s in history.restores) else None

    def _first_step(self) -> Sight | None:
        """Returns where its first chunk went, if that was in the middle of the session."""
        starts = [
            Sight(
                attempt.time_s, self.incarnation, reply.position - len(attempt.tokens), heard_s=reply.time_s
            )
            for attempt in self.acknowledged
            if (reply := attempt.reply) is not None and not reply.replayed
        ]
        first = min(starts, key=lambda start: start.position, default=None)
        return first if first is not None and first.position > 0 else None

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

    def is_left_to(self, later: "Life") -> None:
        """Keeps where a takeover found it."""
        if later.takeover is not None:
            self.seen.add((later.takeover.position, later.takeover.digest))

    def go_on_from(self, before: "Life") -> None:
        """After a takeover the state is that of the life before, where it was taken over."""
        if self.takeover is None:
            return
        self.base = self.takeover.position
        self.first_digest = self.takeover.digest
        end = max((piece.end for piece in before.pieces), default=before.base)
        self._miss(end - self.base, f"a takeover found position {self.base}")
        tokens = before.tokens_up_to(self.base)
        if tokens and self.first_digest and before.digest_of(tokens) not in (0, self.first_digest):
            tokens = None  # what was recorded is not what the store had there
        self.knows_start, self.initial, self.prefix = tokens is not None, before.initial, tokens or []

    def go_on_from_checkpoint(self, earlier: Sequence["Life"]) -> None:
        """After a restore the state is that of an earlier life, where the checkpoint was saved.

        What that life, and those after it, had beyond is given up, not lost.
        """
        if self.restore is None:
            return
        self.base, self.first_digest = self.restore.position, self.restore.digest
        self.knows_start, self.initial, self.prefix = False, None, []
        for life in reversed(earlier):
            tokens = life.tokens_up_to(self.base)
            if tokens is not None and life.digest_of(tokens) == self.first_digest:
                self.begin_with(life.initial, tokens)
                return

    def begin_with(self, initial: Any, tokens: list[NDArray[Any]]) -> None:
        """Takes a state and the tokens that followed it for what was before `base`."""
        self.knows_start, self.initial, self.prefix = True, initial, tokens

    def tokens_up_to(self, position: int) -> list[NDArray[Any]] | None:
        """Returns all tokens since the state `initial`; None if they are not known."""
        places = range(self.base, position)
        if not self.knows_start or self.base > position or any(place not in self.tape for place in places):
            return None
        return self.prefix + [self.tape[place] for place in places]

    def digest_of(self, tokens: Sequence[NDArray[Any]]) -> int:
        """Returns the history digest after all tokens up to a place; 0 is unknown."""
        if not self.first_digest or len(self.prefix) > len(tokens):
            return 0
        since = tokens[len(self.prefix) :]
        return digest_after(self.first_digest, np.array(since)) if len(since) else self.first_digest

    def judge_beginning(self, before: "Life", *, is_deleted: bool) -> None:
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
            place for place, token in told.items() if place not in self.tape or not self.holds(place, token)
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

    def explain(self, what: str, kind: str, size: int) -> None:
        """Counts a fault that explains what was found."""
        setattr(self.findings, kind, getattr(self.findings, kind) + size)
        how = {"lost": "without", "twice": "with twice", "reordered": "after"}[kind]
        self.note(f"{what} is that of a run {how} {size} tokens")

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
            self.pieces.append(Piece(start, reply.position, attempt, reply))
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
            if not self.holds(piece.start + index, token)
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
        known: set[int] = set()
        for piece in sorted(self.pieces, key=lambda piece: piece.reply.time_s):
            if piece.attempt.is_repetition and not piece.reply.replayed and piece.start in known:
                evidence.append(piece.start)  # the store must have lost what its client knew to be there
            known.add(piece.start)
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

    def stands(self, piece: Piece) -> bool:
        """Whether the tape holds all tokens of a piece."""
        places = itertools.count(piece.start)
        return all(map(self.holds, places, piece.attempt.tokens))

    def holds(self, place: int, token: NDArray[Any]) -> bool:
        """Whether the tape, which has one there, holds this token at a position."""
        held = self.tape[place]
        return held is token or bool((held == token).all())
