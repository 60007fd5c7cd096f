"""Commits, one after the other, and what their outcomes mean for rows. Pure."""

from collections import deque
from collections.abc import Iterator, Sequence

from holdfast.errors import ServiceError
from service.engine.effects import Commit
from service.engine.rows import Rows
from service.store.protocol import Found, Loaded, Refusals


class Commits:
    """Lets one commit begin when the one before is over."""

    def __init__(self) -> None:
        self._waiting: deque[Commit] = deque()
        self._under_way: Commit | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether one is under way: its outcome is not known yet."""
        return self._under_way is not None

    @property
    def is_waiting(self) -> bool:
        """Whether one waits for another."""
        return bool(self._waiting)

    def add(self, rows: list[Rows]) -> None:
        """Takes rows with their records."""
        self._waiting.append(Commit(rows))

    def next(self) -> Commit | None:
        """Returns the commit that begins now; None if there is none."""
        if self._under_way is None and self._waiting:
            self._under_way = self._waiting.popleft()
            return self._under_way
        return None

    def end(self, commit: Commit) -> None:
        """A commit is over."""
        if self._under_way is commit:
            self._under_way = None


def unproven(commit: Commit, records: Sequence[Loaded] | None, error: ServiceError) -> Refusals:
    """Says which records of a commit are not known to be stored, its outcome being unknown.

    A record that is found is a fact. One that is not may still arrive, from the buffer of the broken
    connection, so its caller is told to try again and the compare decides.

    Args:
        commit: See there.
        records: What was read back; None if nothing could be.
        error: For the callers.
    """
    sent = [bytes(record) for rows in commit.rows for record in rows.writes.records]
    found = records if records is not None else [None] * len(sent)
    return {
        number: error
        for number, (data, record) in enumerate(zip(found, sent, strict=True))
        if data != record
    }


def outcomes(
    commit: Commit, refusals: Refusals
) -> Iterator[tuple[Rows, list[tuple[Rows, Found | ServiceError]]]]:
    """Yields the rows of a commit that are stored, and those that are not, with the reason."""
    first = 0
    for rows in commit.rows:
        end = first + len(rows)
        refused = {number - first: why for number, why in sorted(refusals.items()) if first <= number < end}
        if refused:
            stored = rows.take(rows.others(refused))
            yield stored, [(rows.one(place), why) for place, why in refused.items()]
        else:
            yield rows, []
        first = end
