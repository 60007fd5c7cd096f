"""Holds the history digests that replies carry against the tokens of a session. Pure; needs no model.

A digest names every token since the session was opened, in order. So between two places whose digests are
known, those of two replies say, the tokens in between are proven to be the ones applied: none is lost,
doubled or exchanged, whatever was or was not asked for as outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import run_of

Tokens = Sequence[NDArray[Any]]


def after(digest: int, tokens: Tokens) -> int:
    """Returns the digest of a history that these tokens continue."""
    return run_of(np.array(tokens)).after(digest) if len(tokens) else digest


class DigestChain:
    """Digests by position, as far as they are known.

    Args:
        tape: Token at each position; may have gaps, and may be filled meanwhile.
        known: Digest at positions where somebody said it.
    """

    def __init__(self, tape: Mapping[int, NDArray[Any]], known: Mapping[int, int]) -> None:
        self._tape = tape
        self._known = dict(known)
        self._places = sorted(known)

    def at(self, position: int) -> int | None:
        """Returns the digest at a position, computed from the nearest one before it; None if unknown."""
        before = next((place for place in reversed(self._places) if place <= position), None)
        tokens = None if before is None else self._between(before, position)
        return None if before is None or tokens is None else after(self._known[before], tokens)

    def leads_on(self, start: int, tokens: Tokens) -> bool | None:
        """Tells whether tokens at a position give the next known digest; None if that cannot be told."""
        end = start + len(tokens)
        digest = self.at(start)
        following = next((place for place in self._places if place >= end), None)
        rest = None if following is None else self._between(end, following)
        if digest is None or following is None or rest is None:
            return None
        return after(digest, [*tokens, *rest]) == self._known[following]

    def _between(self, start: int, end: int) -> list[NDArray[Any]] | None:
        tokens = [self._tape.get(place) for place in range(start, end)]
        return None if any(token is None for token in tokens) else tokens  # type: ignore[return-value]
