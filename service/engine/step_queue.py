"""Decides which waiting chunks run together. Pure: no clock, no I/O, no model.

Invariants: a batch holds at most one chunk per session, since a step needs the state that the one
before it leaves; chunks of a session leave in the order they came; sessions take turns; a session
handed out stays held until `release`, so that its next chunk cannot overtake its commit.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from service.errors import Overloaded

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class StepQueue(Generic[Key, Item]):
    """First in, first out per session; every session at most once per batch.

    Args:
        max_waiting: Bound on waiting items; beyond it `push` refuses.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._sessions: dict[Key, deque[Item]] = {}
        self._ready: deque[Key] = deque()
        self._waiting_count = 0

    def __len__(self) -> int:
        return self._waiting_count

    def __contains__(self, key: Key) -> bool:
        """Whether the session has items waiting or is held."""
        return key in self._sessions

    @property
    def has_ready(self) -> bool:
        """Whether `take` would return anything."""
        return bool(self._ready)

    def push(self, key: Key, item: Item) -> None:
        """Adds an item behind those of its session.

        Raises:
            Overloaded: `max_waiting` items wait already.
        """
        if self._waiting_count >= self._max_waiting:
            raise Overloaded(
                f"{self._waiting_count} chunks wait already, the limit of this server",
                retry_after_s=0.05,
            )
        waiting = self._sessions.get(key)
        if waiting is None:
            waiting = self._sessions[key] = deque()
            self._ready.append(key)
        waiting.append(item)
        self._waiting_count += 1

    def take(self, max_count: int) -> list[tuple[Key, Item]]:
        """Hands out the first item of up to `max_count` sessions and holds these sessions."""
        count = min(max_count, len(self._ready))
        self._waiting_count -= count
        taken = [self._ready.popleft() for _ in range(count)]
        return [(key, self._sessions[key].popleft()) for key in taken]

    def put_back(self, key: Key, item: Item) -> None:
        """Returns an item handed out to the front of its session, which is released."""
        self._sessions[key].appendleft(item)
        self._waiting_count += 1
        self.release(key)

    def release(self, key: Key) -> None:
        """Lets the next item of a held session go."""
        if self._sessions[key]:
            self._ready.append(key)
        else:
            del self._sessions[key]
