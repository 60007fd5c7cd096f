"""Holds the outputs of replies against one unbroken run of their life. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.verify.life import BACK, Life, Piece
from holdfast.verify.network import Network

MAX_EXPLAINED = 16
"""Faults of one life that are explained; what follows counts as wrong."""


class OutputComparison:
    """Compares the replies of a life with the run of its tape, and explains what differs."""

    def __init__(self, life: Life, network: Network, tolerance: float, whole: int) -> None:
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

    def judge(self, pieces: Sequence[Piece]) -> None:
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

    def _difference(self, piece: Piece) -> float:
        start = len(self._before) + piece.start - self._base
        return self._run.differences(start, piece.reply.outputs)

    def _explain(self, pieces: Sequence[Piece], index: int) -> float | None:
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
                self._life.explain(f"the reply to {piece.start}..{piece.end}", kind, size)
                after = [*self._told(piece.start)[:common], *rest, *piece.attempt.tokens]
                self._restart(piece.end + size if kind == "reordered" else piece.end, after)
                return difference
        return None

    def _told(self, place: int) -> list[NDArray[Any]]:
        """Returns what is expected to stand before a position."""
        return self._before + [self._life.tape[place] for place in range(self._base, place)]

    def _hypotheses(
        self, pieces: Sequence[Piece], index: int
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
