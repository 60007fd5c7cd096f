"""Keeps what makes a model fail from taking anything else with it. Pure: times are given.

Nothing is committed before a run has ended, so running again is safe. Whatever a batch does, its rows are
told apart until each has run or has failed by itself: no row fails for what others did. A row goes one of
three ways:

- In the *batch*, with all that are under no suspicion. Others wait for this, and for nothing that follows.
- In a *search* for the row at fault, after its batch has raised. The rows are sorted by tenant and history,
  and what raises of these is halved until it is alone: one run at a time, between batches, tenants in turn.
  Rows that an alarm is about (`suspects`) come here at once.
- *Apart*: rows of a batch that did not end, and suspects. Each alone, in a thread: for a moment first, and
  if that is not enough with all the time that a run may have, where only the like of it waits.

What goes the second or third way is a job, and waits in a line for its turn. Runs that fail have a share of
the event loop's time (`allowance`): whose turn it is may have to wait for that as well.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from holdfast.errors import ServiceError
from service.engine.allowance import Allowance
from service.engine.effects import Failure, Kind, Run
from service.engine.rows import Rows
from service.engine.rules import draining, late
from service.engine.suspects import BARS, Suspects
from service.model.protocol import Model
from service.store.keys import tenant_of

DISTRUST_S = 60.0
"""For so long runs of a model that has held up the event loop are in a thread, however short they seem."""

THREAD_COUNT = 4
"""Runs of batches at once, where one that does not end is left behind; otherwise there is one."""

BRIEF_COUNT = 4
LONG_COUNT = 2
"""Runs apart at once: of those that are given little time, and of those that have all of it."""

_POSITION = 1
"""Column of a stamp."""


class Refused(NamedTuple):
    """Rows that do not run.

    Attributes:
        rows: See there.
        error: Why.
        is_incorrigible: It is one row, and its session has failed by itself once too often.
    """

    rows: Rows
    error: ServiceError
    is_incorrigible: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """Rows that are to run beside batches.

    Attributes:
        kind: SEARCH, BRIEF or LONG.
        tenant: Whose sessions they are.
        parts: What is left to run; the last one is next.
        is_again: They have run before, with others.
        not_before_s: Monotonic time from which it may use its turn.
    """

    kind: Kind
    tenant: bytes
    parts: list[list[Rows]]
    is_again: bool = False
    not_before_s: float = 0.0


class Line:
    """Turns at something that few can do at once: who waits longest is next, by tenants.

    A tenant with a thousand waiting gets as many turns as one with a single one, as long as both wait.

    Args:
        count: So many have their turn at once.
    """

    def __init__(self, count: int) -> None:
        self._free_count = count
        self._waiting: dict[bytes, deque[Job]] = {}  # the tenant whose turn is next is first

    def join(self, job: Job) -> None:
        """Lets a job wait for its turn."""
        self._waiting.setdefault(job.tenant, deque()).append(job)

    def next(self) -> Job | None:
        """Returns the job whose turn it is, and which has it until `leave`; None if there is none."""
        if not self._free_count or not self._waiting:
            return None
        tenant = next(iter(self._waiting))
        jobs = self._waiting.pop(tenant)
        job = jobs.popleft()
        if jobs:
            self._waiting[tenant] = jobs  # at the end
        self._free_count -= 1
        return job

    def leave(self) -> None:
        """A turn is over."""
        self._free_count += 1


class Failures:
    """Says what runs together, and what becomes of what failed.

    Args:
        quarantine_after: Failures of a session in a row that lead to quarantine; 0 is never.
    """

    def __init__(self, quarantine_after: int) -> None:
        self._suspects = Suspects(quarantine_after)
        self._allowance = Allowance()
        self._distrusted_until_s: dict[bytes, float] = {}
        self._on_loop = Line(1)
        self._in_threads = Line(THREAD_COUNT - 1)  # leaves a thread to the batches
        self._apart = {Kind.BRIEF: Line(BRIEF_COUNT), Kind.LONG: Line(LONG_COUNT)}
        self._granted: list[tuple[Job, Line]] = []
        self._running: dict[Run, tuple[Job, Line]] = {}
        self._refused: list[Refused] = []
        self._is_stopping = False
        self.job_count = 0

    @property
    def due_s(self) -> float | None:
        """Monotonic time at which a job may use its turn; None if none waits for that."""
        return min(job.not_before_s for job, _ in self._granted) if self._granted else None

    def distrusts(self, model: Model, now_s: float) -> bool:
        """Whether runs of a model may not end soon: one has held up the event loop not long ago."""
        until_s = self._distrusted_until_s.get(model.fingerprint)
        if until_s is None:
            return False
        if now_s < until_s:
            return True
        del self._distrusted_until_s[model.fingerprint]
        return False

    def quarantined(self, key: bytes) -> None:
        """Notes that a session is in quarantine; once it is released it runs alone first."""
        self._suspects.quarantined(key)

    def stop(self) -> None:
        """Lets no job begin any more; all that wait are refused when next asked for."""
        self._is_stopping = True

    def batch(self, ready: Sequence[Rows], now_s: float) -> list[Run]:
        """Returns how a batch runs, model by model; jobs are made of what is under suspicion."""
        is_wary = bool(self._suspects.sessions or self._suspects.alarms)
        groups: dict[bytes, list[Rows]] = {}
        for rows in ready:
            groups.setdefault(rows.model.fingerprint, []).append(rows)
        batch = Run([])
        apart: list[Run] = []
        for group in groups.values():
            parts = self._divide(group, now_s) if is_wary else [group]
            if self._distrusted_until_s and self.distrusts(group[0].model, now_s):
                apart += [Run([part], in_thread=True, is_aside=is_wary) for part in parts]
            else:
                batch.groups += parts
        return [*apart, batch] if batch.groups else apart

    def _divide(self, group: list[Rows], now_s: float) -> list[list[Rows]]:
        """Returns what may run together, one batch after the other; of what may not jobs are made."""
        is_alarmed = self._suspects.is_alarmed(now_s)
        model = group[0].model.fingerprint
        batches: dict[bytes, list[Rows]] = {}  # by the tenant that an alarm is about; b"" for all others
        searches: dict[bytes, list[Rows]] = {}
        for rows in group:
            places = self._suspects.places(rows.keys)
            self._set_apart(map(rows.one, places))
            if places:
                rest = rows.others(places)
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
                    self._set_apart(map(short.one, range(len(short))))
                elif short:
                    searches.setdefault(tenant, []).append(short)
                if long:
                    batches.setdefault(tenant, []).append(long)
        for tenant, found in searches.items():
            self._wait(Job(Kind.SEARCH, tenant, [found]), now_s)
        return list(batches.values())

    def ran(self, run: Run, group: list[Rows], now_s: float) -> None:
        """Notes that rows have run."""
        model = group[0].model.fingerprint
        if run.kind is Kind.BRIEF or run.kind is Kind.LONG:
            self._suspects.ran_alone(model, group[0].keys[0])
        elif model not in self._suspects.working:
            self._suspects.ran(model)
        if run in self._running:
            self._leave(run, now_s)

    def failed(self, run: Run, group: list[Rows], failure: Failure, now_s: float) -> Refused | None:
        """Takes rows that failed; what is not refused of them goes on as jobs."""
        self._count(group[0].model, failure, now_s)
        refused = None
        if run.kind is Kind.BRIEF and failure.was_halted:
            self._wait(Job(Kind.LONG, tenant_of(group[0].keys[0]), [group], is_again=True), now_s)
        elif run.kind in (Kind.BRIEF, Kind.LONG):
            refused = self._failed_alone(group[0], failure, now_s)
        elif failure.was_halted:
            self._leave_apart(group)
        elif _is_alone(group):
            refused = self._failed_alone(group[0], failure, now_s)
        elif run in self._running:
            self._running[run][0].parts += reversed(_halves(group))
        else:
            self._search(group, now_s)
        self._leave(run, now_s)
        return refused

    def broke(self, run: Run) -> list[Rows]:
        """Ends a job of which a run ended in a way that nobody foresaw; returns what was left to run."""
        if run not in self._running:
            return []
        job, line = self._running.pop(run)
        line.leave()
        self.job_count -= 1
        return [rows for part in job.parts for rows in part]

    def begin(self, now_s: float) -> tuple[list[Run], list[Refused]]:
        """Returns what runs beside batches from now on, and the rows of jobs that do not run any more."""
        runs: list[Run] = []
        while self._grant(now_s):
            granted, self._granted = self._granted, []
            for job, line in granted:
                if not self._is_stopping and now_s < job.not_before_s:
                    self._granted.append((job, line))
                elif (run := self._begun(job, line, now_s)) is not None:
                    runs.append(run)
        refused, self._refused = self._refused, []
        return runs, refused

    def _grant(self, now_s: float) -> bool:
        """Gives turns; returns whether any job may use its own."""
        for line in (self._on_loop, self._in_threads, *self._apart.values()):
            while (job := line.next()) is not None:
                job.not_before_s = now_s + self._allowance.pause_s(now_s)
                self._granted.append((job, line))
        return any(self._is_stopping or job.not_before_s <= now_s for job, _ in self._granted)

    def _begun(self, job: Job, line: Line, now_s: float) -> Run | None:
        """Returns the next run of a job whose turn it is; None if nobody waits for it any more."""
        part = self._wanted(job.parts.pop(), now_s)
        run = Run([part], job.kind, in_thread=line is not self._on_loop, is_again=job.is_again)
        self._running[run] = job, line
        if not part:
            self._leave(run, now_s)
            return None
        job.is_again = True
        return run

    def _leave(self, run: Run, now_s: float) -> None:
        """The turn of a job is over; it waits for the next one if something is left of it."""
        if run in self._running:
            job, line = self._running.pop(run)
            line.leave()
            self.job_count -= 1
            if job.parts:
                self._wait(job, now_s)

    def _wait(self, job: Job, now_s: float) -> None:
        self.job_count += 1
        if job.kind is not Kind.SEARCH:
            line = self._apart[job.kind]
        elif self.distrusts(job.parts[0][0].model, now_s):
            line = self._in_threads
        else:
            line = self._on_loop
        line.join(job)

    def _wanted(self, group: list[Rows], now_s: float) -> list[Rows]:
        """Returns the rows that somebody still waits for; the others are refused."""
        wanted = []
        for rows in group:
            left = rows.unanswered()  # they may have been answered when a stage broke
            rows = rows if len(left) == len(rows) else rows.take(left)
            if self._is_stopping:
                self._refused += [Refused(rows, draining())] if rows.keys else []
                continue
            still, unwanted = rows.by_demand(now_s)
            if still is not None:
                wanted.append(still)
            if unwanted is not None:
                self._refused.append(Refused(unwanted, late()))
        return wanted

    def _count(self, model: Model, failure: Failure, now_s: float) -> None:
        if not failure.was_halted:
            self._allowance.take(failure.cpu_s, now_s)
        elif failure.on_loop:  # elsewhere it held up nobody
            self._distrusted_until_s[model.fingerprint] = now_s + DISTRUST_S

    def _failed_alone(self, row: Rows, failure: Failure, now_s: float) -> Refused:
        [key] = row.keys
        is_incorrigible = self._suspects.failed_alone(
            row.model.fingerprint,
            tenant_of(key),
            key,
            now_s,
            position=int(row.stamps[0, _POSITION]),
            has_stalled=failure.was_halted,
        )
        return Refused(row, failure.error, is_incorrigible)

    def _leave_apart(self, group: list[Rows]) -> None:
        """Leaves all rows of what did not end, those with a history first; one alone is slow."""
        is_slow = _is_alone(group)
        rows = [row for rows in group for row in map(rows.one, range(len(rows)))]
        rows.sort(key=lambda row: -int(row.stamps[0, _POSITION]))
        self._set_apart(rows, is_slow=is_slow, is_again=True)

    def _set_apart(self, rows: Iterable[Rows], *, is_slow: bool = False, is_again: bool = False) -> None:
        """Lets rows run each alone; a moment is not enough for those that are slow, or stalled before."""
        for row in rows:
            [key] = row.keys
            kind = Kind.LONG if is_slow or self._suspects.has_stalled(key) else Kind.BRIEF
            self._wait(Job(kind, tenant_of(key), [[row]], is_again), 0.0)

    def _search(self, group: list[Rows], now_s: float) -> None:
        """Searches the rows of a batch that raised, by tenant, those with a history by themselves."""
        found: dict[tuple[bytes, bool], list[Rows]] = {}
        for rows in group:
            for tenant, part in _by_tenant(rows):
                bar = self._suspects.bar(rows.model.fingerprint, tenant) or BARS[0]
                short, long = _by_history(part, bar)
                if long:
                    found.setdefault((tenant, True), []).append(long)
                if short:
                    found.setdefault((tenant, False), []).append(short)
        for (tenant, _), searched in found.items():
            has_failed = len(found) == 1  # it is the whole batch
            parts = list(reversed(_halves(searched))) if has_failed else [searched]
            self._wait(Job(Kind.SEARCH, tenant, parts, is_again=True), now_s)


def _is_alone(group: Sequence[Rows]) -> bool:
    return len(group) == 1 and len(group[0]) == 1


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
