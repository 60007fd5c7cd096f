"""In which order a session lived its lives. Pure."""

import math
from dataclasses import dataclass, field

from holdfast.verify.session_history import SessionHistory


def incarnations_of(history: SessionHistory) -> list[int]:
    """Returns the lives of a session in the order in which they were lived.

    That is the order in which they were first seen. One that was still found when another was known already
    comes after it. Where two may have begun at the same time, one that was taken over comes before the one
    that found it so; of two takeovers the one that found less, and then the one that left less; else the
    one that was left first.
    """
    seen: dict[int, _Evidence] = {}
    for sight in history.sights:
        one = seen.setdefault(sight.incarnation, _Evidence(sight.incarnation))
        one.add(sight.sent_s, sight.known_s, sight.position, sight.digest)
        if sight.is_opening or sight.took_over or sight.was_put_back:
            one.asked_s = sight.sent_s if sight.asked_s is None else sight.asked_s
        if sight.took_over:
            one.found = (sight.position, sight.digest)
    for attempt in history.attempts:
        if (reply := attempt.reply) is not None:
            one = seen.setdefault(reply.incarnation, _Evidence(reply.incarnation))
            one.add(attempt.time_s, reply.time_s, reply.position, reply.digest)
    for one in seen.values():
        one.first_s = max(one.first_s, one.asked_s)  # what was sent before may have been late in finding it
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
        asked_s: When somebody asked for it to begin.
        heard_s: When it was first known to have begun.
        found: Position and digest at which it took over another one.
        places: Positions and digests that were seen of it.
    """

    incarnation: int
    first_s: float = math.inf
    last_s: float = -math.inf
    asked_s: float = -math.inf
    heard_s: float = math.inf
    found: tuple[int, int] | None = None
    places: set[tuple[int, int]] = field(default_factory=set)

    def add(self, sent_s: float, heard_s: float, position: int, digest: int) -> None:
        """Takes a request that found it, when that was answered, and where it was."""
        self.first_s, self.last_s = min(self.first_s, sent_s), max(self.last_s, sent_s)
        self.heard_s = min(self.heard_s, heard_s)
        self.places.add((position, digest))

    def comes_after(self, other: "_Evidence") -> bool:
        """Whether it was lived after one that may have begun at the same time."""
        outlived, was_outlived = other.heard_s < self.last_s, self.heard_s < other.last_s
        if outlived != was_outlived:
            return outlived
        went_on, was_gone_on_from = self.found in other.places, other.found in self.places
        if went_on != was_gone_on_from:
            return went_on
        if self.found and other.found:
            ends, other_ends = (self.found[0], max(self.places)[0]), (other.found[0], max(other.places)[0])
            if ends != other_ends:
                return ends > other_ends
        return self.last_s > other.last_s
