"""Runs batches so that what makes a model fail takes nothing else with it.

Nothing is committed before a run has ended, so running again is safe. Whatever a batch does, its rows are
told apart until each has run or has failed by itself: no row fails for what others did. A row goes one of
three ways:

- In the *batch*, with all that are under no suspicion. Others wait for this, and for nothing that follows.
- In a *search* for the row at fault, after its batch has raised. The rows are sorted by tenant and history,
  and what raises of these is halved until it is alone: one run at a time, between batches, tenants in turn.
  Rows that an alarm is about (`suspects`) come here at once.
- *Apart*: rows of a batch that did not end, and suspects. Each alone, in a thread: for a moment first, and
  if that is not enough with all the time that a run may have, where only the like of it waits.

Runs that fail have a share of the event loop's time (`allowance`): whoever poisons waits for that.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from service.engine.allowance import Allowance
from service.engine.rows import Rows
from service.engine.runner import BRIEF_COUNT, LONG_COUNT, THREAD_COUNT, Failure, Runner
from service.engine.suspects import BARS, Suspects
from service.engine.turns import Turns
from service.errors import ServiceError
from service.model.protocol import Model
from service.store.keys import tenant_of

_POSITION = 1
"""Column of a stamp."""


class Failed(NamedTuple):
    """Chunks that did not run.

    Attributes:
        rows: See there.
        error: Why.
        is_incorrigible: It is one chunk, and its session has failed by itself once too often.
    """

    rows: Rows
    error: ServiceError
    is_incorrigible: bool = False


class Search(NamedTuple):
    """Rows of one tenant among which may be one at fault.

    Attributes:
        group: The rows.
        tenant: Whose sessions they are.
        is_again: They have run before, with others.
        has_failed: They were alone with each other then, and that raised.
    """

    group: list[Rows]
    tenant: bytes
    is_again: bool = False
    has_failed: bool = False


class Apart(NamedTuple):
    """A row that is to run by itself.

    Attributes:
        rows: The row.
        is_slow: A moment is known to be not enough for it.
    """

    rows: Rows
    is_slow: bool = False


class Outcome(NamedTuple):
    """What came of rows.

    Attributes:
        ran: What ran.
        failed: What did not.
        searches: What is to be searched, see `Isolation.search`.
        apart: What is to run apart, see `Isolation.run_apart`.
    """

    ran: list[Rows]
    failed: list[Failed]
    searches: list[Search]
    apart: list[Apart]


class Observer(Protocol):
    """Is told what failures cost; counts it."""

    def reran(self) -> None:
        """A part of a batch that failed ran again."""

    def halted(self) -> None:
        """A run was ended because it took too long."""


class Isolation:
    """Runs batches of one model each.

    Args:
        runner: Runs them.
        suspects: Who is under suspicion.
        gather: Fills in the raw states of sessions.
        why_not: Tells which rows that have waited for their turn are not to run any more, and why.
        observer: Counts.
    """

    def __init__(
        self,
        runner: Runner,
        suspects: Suspects,
        gather: Callable[[Rows], None],
        why_not: Callable[[Rows], list[tuple[int, ServiceError]]],
        observer: Observer,
    ) -> None:
        self._runner = runner
        self._suspects = suspects
        self._gather = gather
        self._why_not = why_not
        self._observer = observer
        self._allowance = Allowance()
        self._search_turns = Turns(1)  # on the event loop
        self._thread_turns = Turns(THREAD_COUNT - 1)  # leaves a thread to the batches
        self._brief_turns = Turns(BRIEF_COUNT)
        self._long_turns = Turns(LONG_COUNT)

    @property
    def is_wary(self) -> bool:
        """Whether batches are to be split before they run."""
        return bool(self._suspects)

    def may_stall(self, model: Model) -> bool:
        """Whether runs of a model may not end soon, and are not to be waited for."""
        return self._runner.distrusts(model)

    def split(self, group: list[Rows]) -> tuple[list[list[Rows]], Outcome]:
        """Returns what may run together, one batch after the other, and what may not."""
        outcome = Outcome([], [], [], [])
        is_alarmed = self._suspects.is_alarmed(time.monotonic())
        model = group[0].model.fingerprint
        batches: dict[bytes, list[Rows]] = {}  # by the tenant that an alarm is about; b"" for all others
        searches: dict[bytes, list[Rows]] = {}
        for rows in group:
            places = self._suspects.places(rows.keys)
            outcome.apart.extend(Apart(row) for row in _rows(rows, places))
            if places:
                rest = np.setdiff1d(np.arange(len(rows)), places)
                if not len(rest):
                    continue
                rows = rows.take(rest)
            if not is_alarmed:
                batches.setdefault(b"", []).append(rows)
                continue
            for tenant, part in _by_tenant(rows):
                bar = self._suspects.bar(model, tenant)
                if bar is None:
                    batches.setdefault(b"", []).append(part)
                    continue
                short, long = _by_history(part, bar)
                if short and self._suspects.fears_stalls(model, tenant):
                    outcome.apart.extend(Apart(row) for row in _rows(short, range(len(short))))
                elif short:
                    searches.setdefault(tenant, []).append(short)
                if long:
                    batches.setdefault(tenant, []).append(long)
        outcome.searches.extend(Search(rows, tenant) for tenant, rows in searches.items())
        return list(batches.values()), outcome

    async def run(self, group: list[Rows]) -> Outcome:
        """Runs a batch; what fails of it is left to be searched, or to run apart."""
        outcome = Outcome([], [], [], [])
        result = await self._run(group)
        if result is None:
            outcome.ran.extend(group)
        elif result.was_halted:
            self._leave_apart(group, outcome)
        elif _is_alone(group):
            outcome.failed.append(self._failed_alone(group[0], result))
        else:
            outcome.searches.extend(self._sorted(group))
        return outcome

    async def search(self, search: Search, take: Callable[[Outcome], Awaitable[None]]) -> None:
        """Runs rows, halving what raises, until every row has run, has failed alone, or is left apart.

        Args:
            search: See there.
            take: Takes what came of some of the rows.
        """
        parts = list(reversed(_halves(search.group))) if search.has_failed else [search.group]
        is_again = search.is_again
        while parts:
            outcome = Outcome([], [], [], [])
            may_stall = self.may_stall(search.group[0].model)
            turns = self._thread_turns if may_stall else self._search_turns
            async with turns.turn(search.tenant):
                await self._pause()
                part = self._wanted(parts.pop(), outcome)
                if part:
                    if is_again:
                        self._observer.reran()
                    is_again = True
                    result = await self._run(part)
                    await asyncio.sleep(0)  # requests, batches and replies move between runs
                    if result is None:
                        outcome.ran.extend(part)
                    elif result.was_halted:
                        self._leave_apart(part, outcome)
                    elif _is_alone(part):
                        outcome.failed.append(self._failed_alone(part[0], result))
                    else:
                        parts.extend(reversed(_halves(part)))
            await take(outcome)

    async def run_apart(self, apart: Apart) -> Rows | Failed:
        """Runs one row beside batches, when it is its turn."""
        rows = apart.rows
        [key] = rows.keys
        if not apart.is_slow and not self._suspects.has_stalled(key):
            result = await self._run_apart(rows, self._brief_turns, is_brief=True)
            if not (isinstance(result, Failure) and result.was_halted):
                return self._concluded(rows, result)
        return self._concluded(rows, await self._run_apart(rows, self._long_turns, is_brief=False))

    async def _run(self, group: list[Rows]) -> Failure | None:
        """Runs rows; a failure is counted, a success is no news but to the model."""
        model = group[0].model
        for rows in group:
            self._gather(rows)
        result = await self._runner.run(model, group)
        if isinstance(result, Failure):
            self._count(result)
        else:
            self._suspects.ran(model.fingerprint)
        return result

    async def _run_apart(
        self, rows: Rows, turns: Turns, *, is_brief: bool
    ) -> Failure | ServiceError | None:
        """Returns a ServiceError where the row is not to run any more."""
        [key] = rows.keys
        async with turns.turn(tenant_of(key)):
            await self._pause()
            for _, refusal in self._why_not(rows):
                return refusal
            self._gather(rows)
            result = await self._runner.run_apart(rows.model, [rows], is_brief=is_brief)
            if isinstance(result, Failure):
                self._count(result)
            return result

    def _concluded(self, rows: Rows, result: Failure | ServiceError | None) -> Rows | Failed:
        if isinstance(result, ServiceError):
            return Failed(rows, result)
        if isinstance(result, Failure):
            return self._failed_alone(rows, result)
        [key] = rows.keys
        self._suspects.ran_alone(rows.model.fingerprint, key)
        return rows

    def _count(self, failure: Failure) -> None:
        if failure.was_halted:
            self._observer.halted()  # in a thread as a rule, and of these there are few
        else:
            self._allowance.take(failure.cpu_s, time.monotonic())

    async def _pause(self) -> None:
        pause_s = self._allowance.pause_s(time.monotonic())
        if pause_s:
            await asyncio.sleep(pause_s)

    def _failed_alone(self, rows: Rows, failure: Failure) -> Failed:
        [key] = rows.keys
        is_incorrigible = self._suspects.failed_alone(
            rows.model.fingerprint,
            tenant_of(key),
            key,
            time.monotonic(),
            position=int(rows.stamps[0, _POSITION]),
            has_stalled=failure.was_halted,
        )
        return Failed(rows, failure.error, is_incorrigible)

    def _leave_apart(self, group: list[Rows], outcome: Outcome) -> None:
        """Leaves all rows of what did not end, those with a history first; one alone is slow."""
        is_slow = _is_alone(group)
        rows = [row for rows in group for row in _rows(rows, range(len(rows)))]
        rows.sort(key=lambda row: -int(row.stamps[0, _POSITION]))
        outcome.apart.extend(Apart(row, is_slow) for row in rows)

    def _sorted(self, group: list[Rows]) -> list[Search]:
        """Returns the rows of a batch that raised by tenant, those with a history apart from the others."""
        found: dict[tuple[bytes, bool], list[Rows]] = {}
        for rows in group:
            for tenant, part in _by_tenant(rows):
                bar = self._suspects.bar(rows.model.fingerprint, tenant) or BARS[0]
                short, long = _by_history(part, bar)
                if long:
                    found.setdefault((tenant, True), []).append(long)
                if short:
                    found.setdefault((tenant, False), []).append(short)
        is_one = len(found) == 1
        return [
            Search(rows, tenant, is_again=True, has_failed=is_one) for (tenant, _), rows in found.items()
        ]

    def _wanted(self, group: list[Rows], outcome: Outcome) -> list[Rows]:
        """Returns the rows that somebody still waits for; the others have failed."""
        wanted = []
        for rows in group:
            refusals = self._why_not(rows)
            outcome.failed.extend(Failed(rows.one(place), refusal) for place, refusal in refusals)
            places = np.setdiff1d(np.arange(len(rows)), [place for place, _ in refusals])
            if len(places):
                wanted.append(rows if not refusals else rows.take(places))
        return wanted


def _is_alone(group: Sequence[Rows]) -> bool:
    return len(group) == 1 and len(group[0]) == 1


def _rows(rows: Rows, places: Iterable[int]) -> list[Rows]:
    return [rows.take(np.array([place])) for place in places]


def _by_tenant(rows: Rows) -> list[tuple[bytes, Rows]]:
    """Cuts rows by the tenants of its sessions."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(rows.keys):
        places.setdefault(tenant_of(key), []).append(place)
    if len(places) == 1:
        return [(next(iter(places)), rows)]
    return [(tenant, rows.take(np.array(chosen))) for tenant, chosen in places.items()]


def _by_history(rows: Rows, bar: int) -> tuple[Rows | None, Rows | None]:
    """Cuts rows into the sessions with fewer tokens behind them and the others; None is no row."""
    is_long = rows.stamps[:, _POSITION] >= bar
    if is_long.all():
        return None, rows
    if not is_long.any():
        return rows, None
    return rows.take(np.flatnonzero(~is_long)), rows.take(np.flatnonzero(is_long))


def _halves(group: Sequence[Rows]) -> tuple[list[Rows], list[Rows]]:
    """Cuts two rows or more in the middle."""
    first: list[Rows] = []
    second: list[Rows] = []
    room = sum(len(rows) for rows in group) // 2
    for rows in group:
        size = len(rows)
        if size <= room:
            first.append(rows)
        elif room == 0:
            second.append(rows)
        else:
            first.append(rows.take(np.arange(room)))
            second.append(rows.take(np.arange(room, size)))
        room = max(0, room - size)
    return first, second
