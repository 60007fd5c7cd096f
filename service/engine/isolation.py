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
from numpy.typing import NDArray

from service.common.errors import ServiceError
from service.engine.allowance import Allowance
from service.engine.batch import Ran, Steps
from service.engine.hot_state import Standing
from service.engine.runner import BRIEF_COUNT, LONG_COUNT, THREAD_COUNT, Failure, Runner
from service.engine.suspects import BARS, Suspects
from service.engine.turns import Turns
from service.engine.work import Work
from service.model.protocol import Model
from service.store.keys import tenant_of

_POSITION = 1
"""Column of a stamp."""


class Failed(NamedTuple):
    """Chunks that did not run.

    Attributes:
        steps: The chunks.
        error: Why.
        is_incorrigible: It is one chunk, and its session has failed by itself once too often.
    """

    steps: Steps
    error: ServiceError
    is_incorrigible: bool = False


class Search(NamedTuple):
    """Blocks of one tenant among whose rows may be one at fault.

    Attributes:
        group: The blocks.
        tenant: Whose sessions they are.
        is_again: They have run before, with others.
        has_failed: They were alone with each other then, and that raised.
    """

    group: list[Steps]
    tenant: bytes
    is_again: bool = False
    has_failed: bool = False


class Apart(NamedTuple):
    """A row that is to run by itself.

    Attributes:
        steps: The row.
        is_slow: A moment is known to be not enough for it.
    """

    steps: Steps
    is_slow: bool = False


class Outcome(NamedTuple):
    """What came of rows.

    Attributes:
        ran: What ran.
        failed: What did not.
        searches: What is to be searched, see `Isolation.search`.
        apart: What is to run apart, see `Isolation.run_apart`.
    """

    ran: list[Ran]
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
        gather: Copies the raw states of sessions.
        why_not: Tells why a chunk that has waited for its turn is not to run any more; None if it is.
        observer: Counts.
    """

    def __init__(
        self,
        runner: Runner,
        suspects: Suspects,
        gather: Callable[[Standing], NDArray[np.uint8]],
        why_not: Callable[[Work], ServiceError | None],
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

    def split(self, group: list[Steps]) -> tuple[list[list[Steps]], Outcome]:
        """Returns what may run together, one batch after the other, and what may not."""
        outcome = Outcome([], [], [], [])
        is_alarmed = self._suspects.is_alarmed(time.monotonic())
        model = group[0].model.fingerprint
        batches: dict[bytes, list[Steps]] = {}  # by the tenant that an alarm is about; b"" for all others
        searches: dict[bytes, list[Steps]] = {}
        for steps in group:
            places = self._suspects.places(steps.block.keys)
            outcome.apart.extend(Apart(row) for row in _rows(steps, places))
            if places:
                rest = np.setdiff1d(np.arange(len(steps.block)), places)
                if not len(rest):
                    continue
                steps = steps.part(rest)
            if not is_alarmed:
                batches.setdefault(b"", []).append(steps)
                continue
            for tenant, rows in _by_tenant(steps):
                bar = self._suspects.bar(model, tenant)
                if bar is None:
                    batches.setdefault(b"", []).append(rows)
                    continue
                short, long = _by_history(rows, bar)
                if short and self._suspects.fears_stalls(model, tenant):
                    outcome.apart.extend(Apart(row) for row in _rows(short, range(len(short.block))))
                elif short:
                    searches.setdefault(tenant, []).append(short)
                if long:
                    batches.setdefault(tenant, []).append(long)
        outcome.searches.extend(Search(rows, tenant) for tenant, rows in searches.items())
        return list(batches.values()), outcome

    async def run(self, group: list[Steps]) -> Outcome:
        """Runs a batch; what fails of it is left to be searched, or to run apart."""
        outcome = Outcome([], [], [], [])
        result = await self._run(group)
        if not isinstance(result, Failure):
            outcome.ran.extend(result)
        elif result.was_halted:
            self._leave_apart(group, outcome)
        elif _is_alone(group):
            outcome.failed.append(self._failed_alone(group[0], result))
        else:
            outcome.searches.extend(self._sorted(group))
        return outcome

    async def search(self, search: Search, take: Callable[[Outcome], Awaitable[None]]) -> None:
        """Runs blocks, halving what raises, until every row has run, has failed alone, or is left apart.

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
                    if not isinstance(result, Failure):
                        outcome.ran.extend(result)
                    elif result.was_halted:
                        self._leave_apart(part, outcome)
                    elif _is_alone(part):
                        outcome.failed.append(self._failed_alone(part[0], result))
                    else:
                        parts.extend(reversed(_halves(part)))
            await take(outcome)

    async def run_apart(self, apart: Apart) -> Ran | Failed:
        """Runs one row beside batches, when it is its turn."""
        steps = apart.steps
        [key] = steps.block.keys
        if not apart.is_slow and not self._suspects.has_stalled(key):
            result = await self._run_apart(steps, self._brief_turns, is_brief=True)
            if not (isinstance(result, Failure) and result.was_halted):
                return self._concluded(steps, result)
        return self._concluded(steps, await self._run_apart(steps, self._long_turns, is_brief=False))

    async def _run(self, group: list[Steps]) -> list[Ran] | Failure:
        """Runs blocks; a failure is counted, a success is no news but to the model."""
        model = group[0].model
        result = await self._runner.run(model, group, [self._gather(steps.standing) for steps in group])
        if isinstance(result, Failure):
            self._count(result)
        else:
            self._suspects.ran(model.fingerprint)
        return result

    async def _run_apart(
        self, steps: Steps, turns: Turns, *, is_brief: bool
    ) -> list[Ran] | Failure | ServiceError:
        """Returns a ServiceError where the row is not to run any more."""
        [key] = steps.block.keys
        async with turns.turn(tenant_of(key)):
            await self._pause()
            refusal = self._why_not(steps.block.work(0))
            if refusal is not None:
                return refusal
            states = [self._gather(steps.standing)]
            result = await self._runner.run_apart(steps.model, [steps], states, is_brief=is_brief)
            if isinstance(result, Failure):
                self._count(result)
            return result

    def _concluded(self, steps: Steps, result: list[Ran] | Failure | ServiceError) -> Ran | Failed:
        if isinstance(result, ServiceError):
            return Failed(steps, result)
        if isinstance(result, Failure):
            return self._failed_alone(steps, result)
        [key] = steps.block.keys
        self._suspects.ran_alone(steps.model.fingerprint, key)
        [ran] = result
        return ran

    def _count(self, failure: Failure) -> None:
        if failure.was_halted:
            self._observer.halted()  # in a thread as a rule, and of these there are few
        else:
            self._allowance.take(failure.cpu_s, time.monotonic())

    async def _pause(self) -> None:
        pause_s = self._allowance.pause_s(time.monotonic())
        if pause_s:
            await asyncio.sleep(pause_s)

    def _failed_alone(self, steps: Steps, failure: Failure) -> Failed:
        [key] = steps.block.keys
        is_incorrigible = self._suspects.failed_alone(
            steps.model.fingerprint,
            tenant_of(key),
            key,
            time.monotonic(),
            position=int(steps.standing.stamps[0, _POSITION]),
            has_stalled=failure.was_halted,
        )
        return Failed(steps, failure.error, is_incorrigible)

    def _leave_apart(self, group: list[Steps], outcome: Outcome) -> None:
        """Leaves all rows of what did not end, those with a history first; one alone is slow."""
        is_slow = _is_alone(group)
        rows = [row for steps in group for row in _rows(steps, range(len(steps.block)))]
        rows.sort(key=lambda row: -int(row.standing.stamps[0, _POSITION]))
        outcome.apart.extend(Apart(row, is_slow) for row in rows)

    def _sorted(self, group: list[Steps]) -> list[Search]:
        """Returns the rows of a batch that raised by tenant, those with a history apart from the others."""
        found: dict[tuple[bytes, bool], list[Steps]] = {}
        for steps in group:
            for tenant, rows in _by_tenant(steps):
                bar = self._suspects.bar(steps.model.fingerprint, tenant) or BARS[0]
                short, long = _by_history(rows, bar)
                if long:
                    found.setdefault((tenant, True), []).append(long)
                if short:
                    found.setdefault((tenant, False), []).append(short)
        is_one = len(found) == 1
        return [
            Search(rows, tenant, is_again=True, has_failed=is_one) for (tenant, _), rows in found.items()
        ]

    def _wanted(self, group: list[Steps], outcome: Outcome) -> list[Steps]:
        """Returns the rows that somebody still waits for; the others have failed."""
        wanted = []
        for steps in group:
            refusals = [self._why_not(steps.block.work(place)) for place in range(len(steps.block))]
            for place, refusal in enumerate(refusals):
                if refusal is not None:
                    outcome.failed.append(Failed(steps.part(np.array([place])), refusal))
            places = [place for place, refusal in enumerate(refusals) if refusal is None]
            if places:
                wanted.append(steps if len(places) == len(refusals) else steps.part(np.array(places)))
        return wanted


def _is_alone(group: Sequence[Steps]) -> bool:
    return len(group) == 1 and len(group[0].block) == 1


def _rows(steps: Steps, places: Iterable[int]) -> list[Steps]:
    return [steps.part(np.array([place])) for place in places]


def _by_tenant(steps: Steps) -> list[tuple[bytes, Steps]]:
    """Cuts a block by the tenants of its sessions."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(steps.block.keys):
        places.setdefault(tenant_of(key), []).append(place)
    if len(places) == 1:
        return [(next(iter(places)), steps)]
    return [(tenant, steps.part(np.array(chosen))) for tenant, chosen in places.items()]


def _by_history(steps: Steps, bar: int) -> tuple[Steps | None, Steps | None]:
    """Cuts a block into the sessions with fewer tokens behind them and the others; None is no row."""
    is_long = steps.standing.stamps[:, _POSITION] >= bar
    if is_long.all():
        return None, steps
    if not is_long.any():
        return steps, None
    return steps.part(np.flatnonzero(~is_long)), steps.part(np.flatnonzero(is_long))


def _halves(group: Sequence[Steps]) -> tuple[list[Steps], list[Steps]]:
    """Cuts blocks of two rows or more in the middle."""
    first: list[Steps] = []
    second: list[Steps] = []
    room = sum(len(steps.block) for steps in group) // 2
    for steps in group:
        size = len(steps.block)
        if size <= room:
            first.append(steps)
        elif room == 0:
            second.append(steps)
        else:
            first.append(steps.part(np.arange(room)))
            second.append(steps.part(np.arange(room, size)))
        room = max(0, room - size)
    return first, second
