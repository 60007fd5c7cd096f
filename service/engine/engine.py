"""The engine: takes chunks, and answers each one after its commit. Load, run, commit, answer.

Owns the step queue, the hot sessions and the one task that drives them. Whenever the engine is free it
takes what waits: the busier it is, the larger its batches; `pace` says when more are worth a moment's
wait. The commit of a batch overlaps the run of the next one; a session whose commit is under way is held.

Invariants:
- Every work that `submit` takes is answered exactly once, whatever the model or the store does.
- A success is answered only after its commit.
- A refusal that depends on the stored position, and a replay, is answered only from a record that was
  read after the work arrived; see `rules`.
- No exception of a model or the store ends the loop.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.engine import pace, rules
from service.engine.batch import EncodeOutputs, Ran, Step, run_batch
from service.engine.hot_state import HotSession, HotSessions
from service.engine.pace import Pace
from service.engine.rules import Verdict
from service.engine.served import served_model
from service.engine.step_queue import StepQueue
from service.engine.work import Answer, Work, validate
from service.errors import (
    DeadlinePassed,
    Draining,
    InternalFailure,
    PositionConflict,
    ServiceError,
    SessionExpired,
    StoreUnavailable,
)
from service.model.protocol import Model, Models
from service.store.protocol import Found, Outcome, StateStore, Write
from service.store.record import KeptReply, Record, decode, encode

_log = logging.getLogger(__name__)

MAX_CONFLICTS = 16
"""A chunk without position that loses against other writers so often gives up."""

Items = list[tuple[bytes, Work]]


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of the engine.

    Attributes:
        max_batch: Most sessions in one batch; beyond 64 the gain per step is flat.
        max_waiting: Most chunks waiting; beyond it new ones are refused.
        hot_state_bytes: State kept in memory.
        session_ttl_s: Time to live of a session after a commit; 0 is for ever.
    """

    max_batch: int = 64
    max_waiting: int = 8192
    hot_state_bytes: int = 256 << 20
    session_ttl_s: float = 86_400.0


class Observer(Protocol):
    """Is told what the engine does; counts it. Times are seconds."""

    def loaded(self, session_count: int, load_s: float) -> None:
        """States were read from the store in one round trip."""

    def ran(self, chunk_count: int, step_count: int, run_s: float) -> None:
        """A batch ran."""

    def committed(self, chunk_count: int, commit_s: float) -> None:
        """A batch was offered to the store and answered by it."""

    def waited(self, queue_s: Sequence[float]) -> None:
        """Chunks left the queue to run; the wait of each."""

    def applied(self, step_count: int, total_s: Sequence[float]) -> None:
        """Chunks are answered after their commit: steps in all of them, and the time of each."""

    def replayed(self) -> None:
        """A chunk was answered from the record."""

    def conflicted(self) -> None:
        """A commit found another record than expected."""

    def refused(self, reason: str) -> None:
        """A chunk was answered with an error."""


class Engine:
    """Applies chunks exactly once.

    Args:
        models: The models served.
        store: Where sessions live.
        encode_outputs: Turns what a chunk gave into the bytes that are stored and sent.
        observer: Counts.
        limits: Bounds.
    """

    def __init__(
        self,
        models: Models,
        store: StateStore,
        encode_outputs: EncodeOutputs,
        observer: Observer,
        limits: EngineLimits,
    ) -> None:
        self._models = models
        self._store = store
        self._encode_outputs = encode_outputs
        self._observer = observer
        self._limits = limits
        self._queue: StepQueue[bytes, Work] = StepQueue(limits.max_waiting)
        self._hot = HotSessions(limits.hot_state_bytes, self._queue.__contains__)
        self._awake = asyncio.Event()
        self._commit_turn = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None
        self._pace = Pace()
        self._unanswered_count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False

    def start(self) -> None:
        """Starts the task that drives the engine."""
        self._driver = asyncio.create_task(self._drive(), name="engine")

    async def drain(self) -> None:
        """Refuses new chunks and waits until those taken are answered."""
        self._is_draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        """Ends the task; chunks still waiting are refused as Draining."""
        self._is_draining = True
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while items := self._queue.take(self._limits.max_batch):
            for key, work in items:
                self._refuse(key, work, _draining())

    def submit(self, work: Work) -> None:
        """Takes a chunk; `work.answer` gets the outcome, possibly before this returns."""
        self._unanswered_count += 1
        self._idle.clear()
        self._pace.came(work.key)
        work.arrived_s = time.monotonic()
        try:
            if self._is_draining:
                raise _draining()
            rules.check(work.claim)
            self._queue.push(work.key, work)
        except ServiceError as error:
            self._answer(work, error)
        else:
            self._awake.set()

    def forget(self, key: bytes) -> None:
        """Drops a session from memory, because its record was changed by other means than a chunk."""
        if key not in self._queue:
            self._hot.discard(key)

    async def _drive(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            while self._queue.has_ready:
                await self._gather()
                items = self._queue.take(self._limits.max_batch)
                await self._guard(items, self._advance(items))
                await asyncio.sleep(0)  # requests and replies move between batches

    async def _gather(self) -> None:
        """Waits for more chunks, where `Pace` says that it pays."""
        now_s = time.monotonic()
        self._pace.sample(now_s, time.process_time())
        until_s = now_s + pace.MAX_WAIT_S
        while len(self._queue) < self._limits.max_batch and self._pace.expects_more(now_s):
            count = self._pace.arrival_count
            await asyncio.sleep(pace.QUIET_S)
            now_s = time.monotonic()
            if self._pace.arrival_count == count or now_s >= until_s:
                return

    async def _advance(self, items: Items) -> None:
        """One turn: load what is cold, run what is hot, commit, answer."""
        steps, cold = self._plan(items)
        if cold:
            self._spawn(self._guard(cold, self._load(cold)))
        if steps:
            ran = self._run(steps)
            await self._commit_turn.acquire()
            running = [(step.work.key, step.work) for step in steps]
            self._spawn(self._guard(running, self._commit(ran)))

    async def _guard(self, items: Items, coroutine: Coroutine[Any, Any, None]) -> None:
        """Answers the work of a stage that failed in a way nobody foresaw; the loop goes on."""
        try:
            await coroutine
        except Exception:  # noqa: BLE001 -- whatever it is, these callers get an answer
            _log.exception("bug: a stage of the engine failed")
            for key, work in items:
                if not work.is_answered:
                    self._hot.discard(key)
                    self._refuse(key, work, InternalFailure("the server failed on this chunk"))

    # -- plan ---------------------------------------------------------------------------------

    def _plan(self, items: Items) -> tuple[list[Step], Items]:
        """Sorts work into steps to run and sessions to load; answers the rest."""
        now_s = time.monotonic()
        steps: list[Step] = []
        cold: Items = []
        for key, work in items:
            if work.is_cancelled or (work.deadline_s is not None and work.deadline_s < now_s):
                self._refuse(key, work, DeadlinePassed("the caller no longer waits; nothing was run"))
                continue
            session = self._hot.get(key)
            if session is None:
                cold.append((key, work))
                continue
            try:
                step = self._decide(key, work, session)
            except ServiceError as error:
                self._refuse(key, work, error)
            except _Unverified:
                self._hot.discard(key)
                cold.append((key, work))
            else:
                if step is not None:
                    steps.append(step)
        return steps, cold

    def _decide(self, key: bytes, work: Work, session: HotSession) -> Step | None:
        """Returns the step to run; None if the work was answered by a replay.

        Raises:
            ServiceError: The work is refused.
            _Unverified: The answer depends on a record that may be out of date.
        """
        is_fresh = session.verified_s >= work.arrived_s
        try:
            verdict = rules.decide(session.record, work.claim)
        except ServiceError:
            if is_fresh:
                raise
            raise _Unverified from None
        if isinstance(verdict, KeptReply):
            if not is_fresh:
                raise _Unverified
            self._replay(key, work, session, verdict)
            return None
        return Step(work, session, validate(work, session.model))

    def _replay(self, key: bytes, work: Work, session: HotSession, reply: KeptReply) -> None:
        self._observer.replayed()
        model = session.model
        self._answer(work, Answer(session.incarnation, reply.position, model.version, True, reply.outputs))
        self._release(key)

    # -- load ---------------------------------------------------------------------------------

    async def _load(self, items: Items) -> None:
        """Reads cold sessions in one round trip and puts their work back at the front."""
        started_s = time.monotonic()
        try:
            records = await self._store.load([key for key, _ in items])
        except ServiceError as error:
            for key, work in items:
                self._refuse(key, work, error)
            return
        self._observer.loaded(len(items), time.monotonic() - started_s)
        for (key, work), data in zip(items, records, strict=True):
            self._take_in(key, work, data, started_s)

    def _take_in(self, key: bytes, work: Work, data: bytes | None, verified_s: float) -> None:
        """Makes a session hot from what the store holds, and lets its work be decided again."""
        try:
            record = decode(data) if data is not None else None
            model = self._model_for(record, work)
        except ServiceError as error:
            self._hot.discard(key)
            self._refuse(key, work, error)
            return
        self._hot.put(key, model, record, verified_s=verified_s)
        self._queue.put_back(key, work)
        self._awake.set()

    def _model_for(self, record: Record | None, work: Work) -> Model:
        if record is None or record.closed:
            verdict = rules.decide(record, work.claim)
            assert verdict is Verdict.OPEN, "bug: nothing is stored, yet the session runs"
            return self._models.find(work.model_name, work.model_version)
        return served_model(self._models, record)

    # -- run ----------------------------------------------------------------------------------

    def _run(self, steps: Sequence[Step]) -> list[Ran]:
        started_s = time.monotonic()
        self._observer.waited([started_s - step.work.arrived_s for step in steps])
        ran: list[Ran] = []
        for model, group in _by_model(steps):
            ran += run_batch(model, group, self._encode_outputs)
        step_count = sum(step.work.claim.token_count for step in steps)
        self._observer.ran(len(steps), step_count, time.monotonic() - started_s)
        return ran

    # -- commit and answer --------------------------------------------------------------------

    async def _commit(self, ran: list[Ran]) -> None:
        """Offers the records of a batch to the store and answers each chunk by its outcome."""
        try:
            writes: list[Write] = []
            ready: list[tuple[Ran, Record]] = []
            for result in ran:
                if isinstance(result.outcome, ServiceError):
                    self._refuse(result.step.work.key, result.step.work, result.outcome)
                else:
                    work, session = result.step.work, result.step.session
                    writes.append(Write(work.key, session.stamp, encode(result.outcome)))
                    ready.append((result, result.outcome))
            started_s = time.monotonic()
            outcomes = await self._offer(writes) if writes else []
        finally:
            self._commit_turn.release()
        self._observer.committed(len(writes), time.monotonic() - started_s)
        self._settle(ready, outcomes, started_s)

    async def _offer(self, writes: list[Write]) -> list[Outcome]:
        try:
            return await self._store.commit(writes, self._limits.session_ttl_s)
        except StoreUnavailable as error:
            return await self._find_out(writes, error)

    async def _find_out(self, writes: list[Write], error: StoreUnavailable) -> list[Outcome]:
        """Reads back what became of writes whose outcome is unknown.

        A record that is found is a fact. One that is not may still arrive, from the buffer of the
        broken connection, so its caller is told to try again and the compare decides.
        """
        try:
            found = await self._store.load([write.key for write in writes])
        except StoreUnavailable:
            return [error] * len(writes)
        return [None if data == write.record else error for write, data in zip(writes, found, strict=True)]

    def _settle(self, ready: list[tuple[Ran, Record]], outcomes: list[Outcome], started_s: float) -> None:
        applied = [pair for pair, outcome in zip(ready, outcomes, strict=True) if outcome is None]
        _keep_states(applied)
        now_s = time.monotonic()
        self._count_applied(applied, now_s)
        for (result, record), outcome in zip(ready, outcomes, strict=True):
            work, session = result.step.work, result.step.session
            if outcome is None:
                session.record = record._replace(state=b"")
                session.verified_s = started_s
                self._pace.answered(work.key, now_s)
                self._answer(work, _answer_of(record, session))
                self._release(work.key)
            elif isinstance(outcome, Found):
                self._conflict(work, outcome, started_s)
            else:
                self._hot.discard(work.key)
                self._refuse(work.key, work, outcome)

    def _count_applied(self, applied: list[tuple[Ran, Record]], now_s: float) -> None:
        works = [result.step.work for result, _ in applied]
        if works:
            step_count = sum(work.claim.token_count for work in works)
            self._observer.applied(step_count, [now_s - work.arrived_s for work in works])

    def _conflict(self, work: Work, found: Found, verified_s: float) -> None:
        """Another writer came first: decide again on what is stored now."""
        self._observer.conflicted()
        work.conflict_count += 1
        if work.conflict_count > MAX_CONFLICTS:
            self._hot.discard(work.key)
            self._refuse(work.key, work, PositionConflict("other writers keep coming first"))
        elif found.record is None and self._has_expired(work.key, verified_s):
            self._hot.discard(work.key)
            self._refuse(work.key, work, self._expired())
        else:
            self._take_in(work.key, work, found.record, verified_s)

    def _has_expired(self, key: bytes, now_s: float) -> bool:
        """Whether a record that is gone is one that this server saw, longer ago than it could live."""
        session, ttl_s = self._hot.get(key), self._limits.session_ttl_s
        if session is None or not session.is_stored or not ttl_s:
            return False
        return now_s - session.verified_s >= ttl_s

    def _expired(self) -> SessionExpired:
        return SessionExpired(
            f"the session was idle for more than {self._limits.session_ttl_s:g} s; open it again to "
            "start from position 0"
        )

    # -- ends ---------------------------------------------------------------------------------

    def _refuse(self, key: bytes, work: Work, error: ServiceError) -> None:
        """Answers work that was taken from the queue with an error."""
        session = self._hot.get(key)
        if session is not None and not session.is_stored:
            self._hot.discard(key)  # it was only about to be opened
        self._answer(work, error)
        self._release(key)

    def _answer(self, work: Work, outcome: Answer | ServiceError) -> None:
        if isinstance(outcome, ServiceError):
            self._observer.refused(outcome.reason)
        work.is_answered = True
        self._unanswered_count -= 1
        if self._unanswered_count == 0:
            self._idle.set()
        try:
            work.answer(outcome)
        except Exception:  # noqa: BLE001 -- one caller's fault must not reach its neighbours
            _log.exception("bug: a caller could not take its answer")

    def _release(self, key: bytes) -> None:
        self._queue.release(key)
        self._awake.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Unverified(Exception):
    """An answer would rest on a record that the store may no longer hold."""


def _by_model(steps: Sequence[Step]) -> list[tuple[Model, list[Step]]]:
    groups: dict[bytes, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.session.model.fingerprint, []).append(step)
    return [(group[0].session.model, group) for group in groups.values()]


def _keep_states(applied: list[tuple[Ran, Record]]) -> None:
    """Writes the new states of committed chunks into the hot rows, one assignment per model."""
    for rows, group in itertools.groupby(applied, key=lambda pair: pair[0].step.session.rows):
        pairs = list(group)
        slots = [result.step.session.slot for result, _ in pairs]
        rows.scatter(slots, b"".join(record.state for _, record in pairs))


def _draining() -> Draining:
    return Draining("this server is leaving; another one takes the request", retry_after_s=0.05)


def _answer_of(record: Record, session: HotSession) -> Answer:
    reply = record.replies[-1]
    return Answer(record.incarnation, record.position, session.model.version, False, reply.outputs)
