"""Decides which waiting chunks run together. Pure: no clock, no I/O, no model.

Invariants: a batch holds at most one chunk per session, since a step needs the state that the one before
it leaves; chunks of a session leave in the order they came; a session whose chunk is ready or handed out
is held until `release`, so that its next chunk cannot overtake its commit.

A group is chunks of distinct sessions that leave together, once each of these sessions is free. Whoever
comes after it waits behind it. No two groups wait for each other: a group joins all its lines at once, so
the order of arrival is the same in all of them.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, KeysView
from dataclasses import dataclass
from typing import Generic, TypeVar

from holdfast.errors import Overloaded

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


def _never(_: object, __: object) -> bool:
    return False


@dataclass(slots=True)
class _Group(Generic[Item]):
    """A group that still waits for `missing` of its sessions."""

    item: Item
    count: int
    missing: int = 0


class Queue(Generic[Key, Item]):
    """First in, first out per session; every session at most once per batch.

    Args:
        max_waiting: Bound on waiting chunks; beyond it pushing is refused.

    Attributes:
        ready: What `take` hands out, with how many chunks each is.
        waiting_count: Chunks that are not handed out.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._nobody: deque[Item | _Group[Item]] = deque(maxlen=0)  # shared by all that are held alone
        self._lines: dict[Key, deque[Item | _Group[Item]]] = {}
        self.ready: deque[tuple[Item, int]] = deque()
        self.waiting_count = 0

    def __contains__(self, key: Key) -> bool:
        """Whether the session has chunks waiting or is held."""
        return key in self._lines

    @property
    def busy(self) -> KeysView[Key]:
        """The sessions that have chunks waiting or are held, now and later."""
        return self._lines.keys()

    def push(self, key: Key, item: Item) -> None:
        """Adds a chunk behind those of its session.

        Raises:
            Overloaded: `max_waiting` chunks wait already.
        """
        if self.waiting_count >= self._max_waiting:
            raise self._full(1)
        self.waiting_count += 1
        if key in self._lines:
            self._stand_in_line(key, item)
        else:
            self._lines[key] = self._nobody
            self.ready.append((item, 1))

    def push_group(self, keys: Collection[Key], item: Item) -> None:
        """Adds a group, one chunk of each of these distinct sessions.

        Raises:
            Overloaded: With the group more than `max_waiting` chunks would wait.
        """
        count = len(keys)
        if self.waiting_count + count > self._max_waiting:
            raise self._full(count)
        self.waiting_count += count
        if self._lines.keys().isdisjoint(keys):
            self._lines.update(dict.fromkeys(keys, self._nobody))
            self.ready.append((item, count))
            return
        group = _Group(item, count)
        for key in keys:
            if key in self._lines:
                self._stand_in_line(key, group)
                group.missing += 1
            else:
                self._lines[key] = self._nobody

    def take(self, max_count: int, joins: Callable[[list[Item], Item], bool] = _never) -> list[Item]:
        """Hands out what is ready; the sessions stay held.

        Args:
            max_count: So many chunks, or one group beyond.
            joins: Tells whether what is ready goes with those already taken, though these are so many.
        """
        taken: list[Item] = []
        count = 0
        while self.ready and (count < max_count or joins(taken, self.ready[0][0])):
            item, weight = self.ready.popleft()
            taken.append(item)
            count += weight
        self.waiting_count -= count
        return taken

    def put_back(self, item: Item, count: int) -> None:
        """Returns what was handed out, `count` chunks; it is ready, its sessions stay held."""
        self.waiting_count += count
        self.ready.append((item, count))

    def release(self, keys: Collection[Key]) -> None:
        """Lets the next chunks of held sessions go."""
        lines = list(map(self._lines.pop, keys))
        if lines.count(self._nobody) == len(lines):
            return  # nobody waits for any of them, as mostly
        for key, line in zip(keys, lines, strict=True):
            if line is not self._nobody:
                self._lines[key] = line
                self._next(key)

    def _full(self, count: int) -> Overloaded:
        return Overloaded(
            f"{self.waiting_count} chunks wait already, with {count} more it would be beyond the "
            f"{self._max_waiting} that this server takes",
            retry_after_s=0.05,
        )

    def _stand_in_line(self, key: Key, entry: Item | _Group[Item]) -> None:
        if self._lines[key] is self._nobody:
            self._lines[key] = deque((entry,))
        else:
            self._lines[key].append(entry)

    def _next(self, key: Key) -> None:
        line = self._lines[key]
        entry = line.popleft()
        if not line:
            self._lines[key] = self._nobody
        if not isinstance(entry, _Group):
            self.ready.append((entry, 1))
            return
        entry.missing -= 1
        if entry.missing == 0:
            self.ready.append((entry.item, entry.count))
