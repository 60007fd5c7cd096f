"""Which events of a generation share a message.

A message costs the server about as much CPU as drawing and applying a token, so generations that compete
for it send fewer of them. One that competes with nobody sends each token when it is committed.
"""

import time
from collections.abc import Callable

from holdfast.v1 import holdfast_pb2 as pb

MAX_EVENTS = 18
"""Of a message: a start, as many tokens as the Python client asks for at a time, and an end."""

HOLD_S_PER_RIVAL = 0.002
MAX_HOLD_S = 0.1
"""Between two messages of a generation pass so many seconds for each other one, or this if that is less."""


class Joint:
    """Gathers the events of one call. It has no timer: what is held leaves with one of the next events.

    Args:
        rivals: Returns how many other generations the process has.
        is_continued: Tokens of the generation have come before, so that the first one here may wait too.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, rivals: Callable[[], int], *, is_continued: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rivals = rivals
        self._clock = clock
        self._held: list[pb.GenerateResponse] = []
        self._left_s = clock() if is_continued else -MAX_HOLD_S

    def add(self, event: pb.GenerateResponse, *, is_followed: bool) -> pb.GenerateResponse | None:
        """Takes an event; returns a message if one is to be sent now.

        Args:
            event: The event.
            is_followed: Another event is there already, or worth waiting for.
        """
        self._held.append(event)
        if len(self._held) < MAX_EVENTS:
            if is_followed:
                return None
            hold_s = min(MAX_HOLD_S, HOLD_S_PER_RIVAL * self._rivals())
            if not event.HasField("end") and self._clock() < self._left_s + hold_s:
                return None
        return self.rest()

    def rest(self) -> pb.GenerateResponse | None:
        """Returns what is held as one message, None if nothing is."""
        if not self._held:
            return None
        message, *more = self._held
        message.more.extend(more)
        self._held.clear()
        self._left_s = self._clock()
        return message
