"""Holds the history digests that replies carry against the tokens of a session. Pure; needs no model.

A digest names every token since the session was opened, in order. So between two places whose digests are
known, those of two replies say, the tokens in between are proven to be the ones applied: none is lost,
doubled or exchanged, whatever was or was not asked for as outputs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
        for place, said in self._said:
            rest = self._between(end, place) if end <= place <= last else None
            if rest is not None and after(digest, [*tokens, *rest]) == said:
                return True
        return False

    def _between(self, start: int, end: int) -> list[NDArray[Any]] | None:
        tokens = [self._tape.get(place) for place in range(start, end)]
        return None if any(token is None for token in tokens) else tokens  # type: ignore[return-value]
