"""Where copies come from: sessions that had consumed the same tokens, as history digests tell. Pure.

A copy begins in the middle. What it had consumed by then is in the record of its source, or of whoever else
had the same digest at the same position; so the outputs of a copy are held against a run from there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from numpy.typing import NDArray

from holdfast.verify.life import Life
from holdfast.verify.session_history import SessionHistory

Begin = tuple[Any, list[NDArray[Any]]]
"""The state that a session began with, None for the model's own, and all tokens since."""


class Origins:
    """Finds what copies begin with.

    Args:
        histories: Of all sessions.
        live_through: Returns the lives of a session, with their tapes.
    """

    def __init__(
        self, histories: Iterable[SessionHistory], live_through: Callable[[SessionHistory], list[Life]]
    ) -> None:
        self._live_through = live_through
        self._lives: dict[int, list[Life]] = {}
        self._places: defaultdict[tuple[int, int], list[SessionHistory]] = defaultdict(list)
        for history in histories:
            for place in dict.fromkeys(_places(history)):
                self._places[place].append(history)

    def find(self, position: int, digest: int) -> Begin | None:
        """Returns what was consumed up to a place; None if nobody's record has all of it."""
        for history in self._places.get((position, digest), ()):
            for life in self._lives_of(history):
                if (tokens := life.tokens_up_to(position)) is not None and life.digest_of(tokens) == digest:
                    return life.initial, tokens
        return None

    def _lives_of(self, history: SessionHistory) -> list[Life]:
        """Returns the lives of a session; none of the one that is being looked at, which asks."""
        if id(history) not in self._lives:
            self._lives[id(history)] = []
            self._lives[id(history)] = self._live_through(history)
        return self._lives[id(history)]


def _places(history: SessionHistory) -> Iterator[tuple[int, int]]:
    """Yields where a session was known to stand."""
    for attempt in history.attempts:
        if attempt.reply is not None and attempt.reply.digest:
            yield attempt.reply.position, attempt.reply.digest
    for sight in history.sights:
        if sight.digest:
            yield sight.position, sight.digest
