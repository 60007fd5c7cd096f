"""What one watcher has yet to be shown of its session. Pure.

Events may be lost, come late, or come while the watcher does not read. So positions say what is shown: of
what comes faster than it is taken the newest remains, and what lies between two that are shown is counted.
A look at the record says what no event did: that the session has ended, that another writer took it over,
or that it stands elsewhere than the events say.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from service.engine.watch_events import Event
from service.store.record import Record

MAX_EARLY = 256
"""Events that are kept until the record is read, or read again."""

MAX_SHOWN = 16
"""What waits to be shown; events replace each other, so more means a takeover upon a takeover."""


class Standing(NamedTuple):
    """Where the session stands, by its record.

    Attributes:
        record: As it was read.
    """

    record: Record


class Step(NamedTuple):
    """A chunk.

    Attributes:
        event: What is known of it.
        before: The raw state before it; None where that is not at hand.
    """

    event: Event
    before: bytes | None


class Ended(NamedTuple):
    """The session was deleted, or has expired; nothing follows.

    Attributes:
        incarnation: Of the session.
        position: Where it ended, as far as known.
    """

    incarnation: int
    position: int


What = Standing | Step | Ended


class Shown(NamedTuple):
    """What is to be shown next.

    Attributes:
        what: See there.
        skipped_tokens: Tokens between it and what was shown before.
    """

    what: What
    skipped_tokens: int


class Follower:
    """Follows one session.

    Args:
        wake: Called when there is something to take or to look at.

    Attributes:
        wake: See above.
        needs_look: The record should be read.
        position: Tokens consumed as far as known.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._incarnation = 0
        self._state: bytes | None = None
        self._early: deque[Event] = deque(maxlen=MAX_EARLY)
        self._waiting: deque[What] = deque()
        self._shown_position = 0
        self._behind_position: int | None = None
        self.needs_look = False
        self._has_ended = False
        self.position = 0

    def saw(self, event: Event) -> None:
        """Takes an event of the session."""
        if self._has_ended:
            return
        if event.incarnation != self._incarnation:
            self._early.append(event)
            self.changed()
            return
        if event.position > self.position:
            is_next = event.position - event.token_count == self.position
            self._wait(Step(event, self._state if is_next else None))
            self.position, self._state = event.position, event.state
        elif not event.replayed:  # late, or the store has gone back
            self.changed()
        elif not self._waiting:
            self._wait(Step(event, None))

    def changed(self) -> None:
        """Has the record looked at."""
        self.needs_look = True
        self.wake()

    def peeked(self, stands: tuple[int, int] | None, seen_position: int) -> None:
        """Has the record looked at if something has become of it that no event told.

        Args:
            stands: Incarnation and position of the session; None if it is not there.
            seen_position: `position` when the reading began.
        """
        is_same = stands is not None and stands[0] == self._incarnation and stands[1] >= seen_position
        if stands is None or not is_same or self._is_behind(stands[1]):
            self.changed()

    def looked(self, record: Record | None, seen_position: int) -> None:
        """Takes the record as it was read.

        Args:
            record: As it was read; None where nothing is stored.
            seen_position: `position` when the reading began.
        """
        if self._has_ended:
            return
        if record is None or record.deleted:
            self._has_ended = True
            is_same = record is not None and record.incarnation == self._incarnation
            position = record.position if record is not None and is_same else self.position
            self._wait(Ended(self._incarnation, position))
        elif record.incarnation != self._incarnation or record.position < seen_position:
            if self._incarnation == 0:
                self._shown_position = record.position
            self._stand(record)
        elif self._is_behind(record.position):
            self._stand(record)

    def take(self) -> Shown | None:
        """Returns what is to be shown next, if there is anything."""
        if not self._waiting:
            return None
        what = self._waiting.popleft()
        if not isinstance(what, Step):
            position = what.record.position if isinstance(what, Standing) else what.position
            skipped, self._shown_position = position - self._shown_position, position
            return Shown(what, max(0, skipped))
        event = what.event
        if event.position <= self._shown_position:  # a replay of what was shown or left out
            return Shown(what, 0)
        skipped = event.position - event.token_count - self._shown_position
        self._shown_position = event.position
        return Shown(what, max(0, skipped))

    def _is_behind(self, position: int) -> bool:
        """Whether what was committed when this was asked before is still not told, and so was lost."""
        was_behind = self._behind_position is not None and self.position < self._behind_position
        if not was_behind:
            self._behind_position = position if position > self.position else None
        return was_behind

    def _stand(self, record: Record) -> None:
        self._incarnation, self.position, self._state = record.incarnation, record.position, record.state
        self._behind_position = None
        self._wait(Standing(record))
        early, self._early = self._early, deque(maxlen=MAX_EARLY)
        for event in early:
            if event.incarnation == record.incarnation:
                self.saw(event)

    def _wait(self, what: What) -> None:
        """Has something shown, in place of the last thing of its kind."""
        if self._waiting and type(self._waiting[-1]) is type(what):
            self._waiting.pop()
        elif len(self._waiting) == MAX_SHOWN:
            self._waiting.popleft()
        self._waiting.append(what)
        self.wake()
