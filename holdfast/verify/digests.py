"""Holds the history digests that replies carry against the tokens of a session. Pure; needs no model.

A digest names every token since the session was opened, in order. So between two places whose digests are
known, those of two replies say, the tokens in between are proven to be the ones applied: none is lost,
doubled or exchanged, whatever was or was not asked for as outputs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import run_of
from holdfast.verify.life import BACK, Life, Piece

Tokens = Sequence[NDArray[Any]]


def after(digest: int, tokens: Tokens) -> int:
    """Returns the digest of a history that these tokens continue."""
    return run_of(np.array(tokens)).after(digest) if len(tokens) else digest


class DigestChain:
    """Digests by position, as far as they are known.

    Args:
        tape: Token at each position; may have gaps, and may be filled meanwhile.
        known: Digest at positions where a reply said it.
        seen: Positions and digests at which the session was seen, though the store may have forgotten that.
    """

    def __init__(
        self,
        tape: Mapping[int, NDArray[Any]],
        known: Mapping[int, int],
        seen: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._tape = tape
        self._known = dict(known)
        self._places = sorted(known)
        self._said = sorted({*known.items(), *seen})

    def at(self, position: int) -> int | None:
        """Returns the digest at a position, computed from the nearest one before it; None if unknown."""
        before = next((place for place in reversed(self._places) if place <= position), None)
        tokens = None if before is None else self._between(before, position)
        return None if before is None or tokens is None else after(self._known[before], tokens)

    def leads_on(self, start: int, tokens: Tokens) -> bool:
        """Tells whether tokens give a digest that is said after them, up to the next known one."""
        end = start + len(tokens)
        digest = self.at(start)
        if digest is None:
            return False
        last = next((place for place in self._places if place >= end), math.inf)
        if last < math.inf and (rest := self._between(end, int(last))) is not None:
            return after(digest, [*tokens, *rest]) == self._known[int(last)]
        for place, said in self._said:
            rest = self._between(end, place) if end <= place <= last else None
            if rest is not None and after(digest, [*tokens, *rest]) == said:
                return True
        return False

    def _between(self, start: int, end: int) -> list[NDArray[Any]] | None:
        tokens = [self._tape.get(place) for place in range(start, end)]
        return None if any(token is None for token in tokens) else tokens  # type: ignore[return-value]


class DigestComparison:
    """Holds the digests of replies against the tape of a life, and explains what differs."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._known = {life.base: life.first_digest} if life.first_digest else {}

    def judge(self, pieces: Sequence[Piece]) -> int:
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

    def _explain(self, pieces: Sequence[Piece], index: int) -> int:
        """Counts what else the history of a reply held; returns the tokens after it that this explains."""
        piece, life = pieces[index], self._life
        place = f"{piece.start}..{piece.end}"
        for kind, size, start, tokens in self._hypotheses(pieces, index):
            if start in self._known and after(self._known[start], tokens) == piece.reply.digest:
                life.explain(f"the history digest of the reply to {place}", kind, size)
                return size if kind == "reordered" else 0
        life.findings.wrong += piece.end - piece.start
        life.note(f"the history digest of the reply to {place} is not that of the tokens up to there")
        return 0

    def _hypotheses(
        self, pieces: Sequence[Piece], index: int
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
