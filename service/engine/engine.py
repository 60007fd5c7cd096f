"""The engine: takes chunks, and answers each one after its commit. Load, run, commit, answer.

Owns the step queue, the hot sessions and the one task that drives them. Whenever the engine is free it
takes what waits: the busier it is, the larger its batches; `pace` says when more are worth a moment's
wait. The commit of a batch overlaps the run of the next one; a session whose commit is under way is held.

Chunks go through it as rows, in arrays: those of a message in columns from the start, single ones from
the moment a batch is taken.

Invariants:
- Every chunk that is submitted is answered exactly once, whatever the model or the store does.
- A success is answered only after its commit, and once that is as durable as was asked for.
- A refusal that depends on the stored position, and a replay, is answered only from a record that was
  read after the chunk arrived; see `rules`.
- No exception of a model or the store ends the loop.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service import failpoints
from service.background import RETRY_PAUSE_S, Trouble
from service.engine import pace, rules
from service.engine.bell import Bell
from service.engine.busy_clock import BusyClock
from service.engine.cache import Cache
from service.engine.checks import check_named, check_tokens, served_model, validate
from service.engine.chunk import Asked, Chunk
from service.engine.isolation import Apart, Failed, Isolation, Outcome
from service.engine.pace import Pace
from service.engine.quarantine import quarantine
from service.engine.queue import Queue
from service.engine.records import make_records
from service.engine.rows import Rows, join
from service.engine.run import EncodeOutputs
from service.engine.runner import Runner
from service.engine.session_event import SessionEvent
from service.engine.suspects import Suspects
from service.errors import (
    DeadlinePassed,
    Draining,
    InternalFailure,
    PositionConflict,
    ServiceError,
    SessionExpired,
    StoreUnavailable,
)
from service.model.protocol import Models
from service.store.protocol import AckLevel, Found, Loaded, Refusals, StateStore
from service.store.record import KeptReply, Record, decode

_log = logging.getLogger(__name__)

MAX_CONFLICTS = 16
"""A chunk without position that loses against other writers so often gives up."""

MAX_READS = 4
"""Reads of the same records, each across a change of the server that answers."""

LINGER_S = 0.02
"""Others wait for so long for a batch of a model that may stall."""

PAST_EPOCH = -1
"""An epoch of the store that is over: what belongs to it is not confirmed."""

Items = Sequence[Chunk | Rows]
"""What is taken from the queue."""


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of the engine.

    Attributes:
        max_batch: Most single chunks in one batch; beyond 64 the gain per step is flat.
        max_waiting: Most chunks waiting; beyond it new ones are refused.
        hot_state_bytes: Memory for hot sessions.
        session_ttl_s: Time to live of a session after a commit; 0 is for ever.
        ack_level: Of chunks that ask for none.
        run_timeout_s: Longest run of a model.
        quarantine_after: A session that fails by itself so often in a row is quarantined; 0 is never.
    """

    max_batch: int = 64
    max_waiting: int = 8192
    hot_state_bytes: int = 256 << 20
    session_ttl_s: float = 86_400.0
    ack_level: AckLevel = AckLevel.MEMORY
    run_timeout_s: float = 10.0
    quarantine_after: int = 3


class Observer(Protocol):
    """Is told what the engine does; counts it. Times are seconds."""

    def loaded(self, session_count: int, load_s: float) -> None:
        """Sessions that were not in memory were read from the store in one round trip."""

    def ran(self, chunk_count: int, step_count: int, run_s: float) -> None:
        """A batch ran."""

    def committed(self, size_bytes: int, commit_s: float) -> None:
        """The records of a batch were offered to the store and answered by it."""

    def waited(self, queue_s: Sequence[float], each: int = 1) -> None:
        """Chunks left the queue to run; the wait of each, or of `each` chunks that came together."""

    def applied(self, step_count: int, total_s: Sequence[float], each: int = 1) -> None:
        """Chunks are answered after their commit: all their steps, and the time of each or of `each`."""

    def acknowledged(self, ack_level: AckLevel, chunk_count: int) -> None:
        """Chunks were answered, replays included, being as durable as this."""

    def replayed(self) -> None:
        """A chunk was answered from the record."""

    def conflicted(self) -> None:
        """A commit found another record than expected."""

    def refused(self, reason: str) -> None:
        """A chunk was answered with an error, and its caller still waits for it."""

    def reran(self) -> None:
        """A part of a batch that failed ran again."""

    def halted(self) -> None:
        """A run was ended because it took too long."""

    def session_event(self, event: SessionEvent, count: int = 1) -> None:
        """Something happened to sessions."""


class Engine:
    """Applies chunks exactly once.

    Args:
        models: The models served.
        store: Where sessions live.
        encode_outputs: Turns what chunks gave into the bytes that are stored and sent.
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
        self._runner = Runner(encode_outputs, limits.run_timeout_s)
        self._observer = observer
        self._limits = limits
        self._queue: Queue[bytes, Chunk | Rows] = Queue(limits.max_waiting)
        self._cache = Cache(limits.hot_state_bytes, self._queue.__contains__)
        self._suspects = Suspects(limits.quarantine_after)
        self._isolation = Isolation(
            self._runner, self._suspects, self._cache.gather, self._why_not, observer
        )
        self._bell = Bell()
        self._commit_turn = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None
        self._forgotten: set[bytes] = set()
        self._pace = Pace()
        self._busy_clock = BusyClock()
        self._unanswered_count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False
        self._is_stopping = False
        self._epoch = store.epoch
        self._epoch_seen_s = time.monotonic()

    def start(self) -> None:
        """Starts the task that drives the engine."""
        self._driver = asyncio.create_task(self._drive(), name="engine")

    def hot_usage(self) -> tuple[int, int]:
        """Returns the number of sessions in memory, and the bytes of their states and kept replies."""
        return len(self._cache), self._cache.held_bytes

    async def drain(self) -> None:
        """Refuses new chunks and waits until those taken are answered."""
        self._is_draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        """Finishes the batch under way; chunks still waiting are refused as Draining.

        Cancelled, it gives up what is under way: nobody is told what became of it.
        """
        self._is_draining = self._is_stopping = True
        self._bell.ring()
        try:
            if self._driver is not None:
                await self._driver
            while self._tasks:  # a commit that ends may leave a confirmation behind
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            for task in self._tasks:
                task.cancel()
            self._runner.close()
            self._busy_clock.close()
        while items := self._queue.take(self._limits.max_batch):
            for rows in map(_as_rows, items):
                self._refuse(rows, _draining())

    def submit(self, chunk: Chunk) -> None:
        """Takes a chunk; it is settled with what it gets, possibly before this returns."""
        self._pace.came(chunk.key)
        chunk.arrived_s = time.monotonic()
        try:
            self._check_open(chunk.asked)
            chunk.check()
            self._queue.push(chunk.key, chunk)
        except ServiceError as error:
            if not chunk.is_cancelled:
                self._observer.refused(error.reason)
            chunk.settle(error.without_trace())
        else:
            self._take_over(1)

    def submit_rows(self, rows: Rows) -> None:
        """Takes rows of a message; it gets what became of them, maybe before this returns."""
        assert rows.message is not None, "bug: rows of nobody"
        rows.message.arrived_s = time.monotonic()
        try:
            self._check_open(rows.asked)
            self._queue.push_group(rows.keys, rows)
        except ServiceError as error:
            self._settle(rows, error)
        else:
            self._take_over(len(rows))

    def forget(self, key: bytes) -> None:
        """Drops a session from memory, because its record was changed by other means than a chunk."""
        if key in self._queue:
            self._forgotten.add(key)  # once what is under way is answered
        else:
            self._cache.discard(key)

    def _take_over(self, count: int) -> None:
        self._unanswered_count += count
        self._idle.clear()
        self._bell.ring()

    def _check_open(self, asked: Asked) -> None:
        if self._is_draining:
            raise _draining()
        if asked.ack_level:
            self._store.check_level(asked.ack_level)

    async def _drive(self) -> None:
        trouble = Trouble("engine")
        while not self._is_stopping:
            if not self._queue.has_ready:
                await self._bell.wait()
                continue
            with trouble:
                await self._gather()
                items = self._queue.take(self._limits.max_batch)
                await self._guard(items, self._advance(items))
                await asyncio.sleep(0)  # requests and replies move between batches
                continue
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _gather(self) -> None:
        """Waits for more chunks: while a commit is under way, and where `Pace` says that it pays."""
        if len(self._queue) < self._limits.max_batch:
            async with self._commit_turn:
                pass
        now_s = time.monotonic()
        self._pace.sample(now_s, self._busy_clock.read_s())
        until_s = now_s + pace.MAX_WAIT_S
        while len(self._queue) < self._limits.max_batch and self._pace.expects_more(now_s):
            count = self._pace.arrival_count
            await asyncio.sleep(pace.QUIET_S)
            now_s = time.monotonic()
            if self._pace.arrival_count == count or now_s >= until_s:
                return

    async def _advance(self, items: Items) -> None:
        """One turn: load what is cold, run what is hot, commit, answer."""
        ready, cold = self._plan(items)
        if cold and not (ready or self._queue.has_ready):
            await self._load(cold)  # nobody else waits, so it needs no task of its own
        elif cold:
            self._spawn(self._guard(cold, self._load(cold)))
        if ready and (ran := await self._run(ready)):
            await self._commit_turn.acquire()
            self._spawn(self._guard(ran, self._commit(ran)))

    async def _guard(self, items: Items, coroutine: Coroutine[Any, Any, None]) -> None:
        """Answers the chunks of a stage that failed in a way nobody foresaw; the loop goes on."""
        try:
            await coroutine
        except Exception:  # noqa: BLE001 -- whatever it is, these callers get an answer
            _log.exception("bug: a stage of the engine failed")
            for rows in map(_as_rows, items):
                left = rows.unanswered()
                if len(left):
                    rows = rows.anew(left)
                    for key in rows.keys:
                        self._cache.discard(key)
                    self._refuse(rows, InternalFailure("the server failed on this chunk"))

    # -- plan ---------------------------------------------------------------------------------

    def _plan(self, items: Items) -> tuple[list[Rows], list[Rows]]:
        """Sorts chunks into rows to run and rows of sessions to load; answers the rest."""
        ready: list[Rows] = []
        cold: list[Rows] = []
        for rows in self._joined(items):
            slots = self._cache.find(rows.keys)
            if None in slots:
                cold.append(rows)
            else:
                ready += self._decide(rows, np.array(slots), cold)
        return ready, cold

    def _joined(self, items: Items) -> list[Rows]:
        """Joins single chunks that ask for the same, hot and cold ones apart; drops what nobody wants."""
        now_s = time.monotonic()
        joined: list[Rows] = []
        alike: dict[tuple[Asked, bool], list[Chunk]] = {}
        for item in items:
            if isinstance(item, Rows):
                joined.append(item)
            else:
                alike.setdefault((item.asked, item.key in self._cache), []).append(item)
        joined += map(join, alike.values())
        return [wanted for rows in joined if (wanted := self._wanted(rows, now_s)) is not None]

    def _wanted(self, rows: Rows, now_s: float) -> Rows | None:
        """Returns the rows that somebody waits for; refuses the others."""
        unwanted = rows.unwanted(now_s)
        if not unwanted:
            return rows
        self._refuse(rows.anew(np.array(unwanted)), _late())
        wanted = np.setdiff1d(np.arange(len(rows)), unwanted)
        return rows.anew(wanted) if len(wanted) else None

    def _decide(self, rows: Rows, slots: NDArray[np.int64], cold: list[Rows]) -> list[Rows]:
        """Returns what runs, split by model; looks at the other rows one by one."""
        self._cache.look_up(rows, slots)
        runs = rules.continues(
            rows.stamps, rows.positions, rows.incarnations, rows.digests, rows.asked.token_count
        )
        if rows.acknowledged is not None:
            is_ahead = rules.sends_ahead(rows.stamps, rows.acknowledged)
            runs &= ~is_ahead | self._cache.has_tails(slots, self._epoch_began_s())
        if np.count_nonzero(runs) < len(rows):
            for place in np.flatnonzero(~runs).tolist():
                self._decide_alone(rows.one(place), cold)
            rows = rows.take(np.flatnonzero(runs))
        numbers = rows.models
        if len(rows) and np.count_nonzero(numbers == numbers[0]) == len(rows):
            return self._check(rows)
        ready: list[Rows] = []
        for number in np.unique(numbers):
            ready += self._check(rows.take(np.flatnonzero(numbers == number)))
        return ready

    def _check(self, rows: Rows) -> list[Rows]:
        """Returns the rows that suit their model, one part or none; refuses the others."""
        rows.model = self._cache.model(rows.models[0])
        try:
            rows.selection = validate(rows.asked, rows.model)
        except ServiceError as error:
            self._refuse(rows, error)
            return []
        wrong = check_tokens(rows.asked, rows.tokens, rows.model.contract)
        if not wrong:
            return [rows]
        for place, reason in wrong.items():
            self._refuse(rows.one(place), reason)
        chosen = np.setdiff1d(np.arange(len(rows)), list(wrong))
        return [rows.take(chosen)] if len(chosen) else []

    def _decide_alone(self, row: Rows, cold: list[Rows]) -> None:
        """Answers a row that does not just run, or has it loaded if the answer could be out of date.

        What was known before the store's connection broke may be what another server never had.
        """
        slot = int(row.slots[0])
        if not self._cache.knows_all(slot, max(row.arrived_s(0), self._epoch_began_s())):
            self._cache.discard(row.keys[0])
            cold.append(row)
            return
        record, row.model = self._cache.record(slot), self._cache.model_at(slot)
        try:
            reply = rules.decide(record, row.claim(0))
            assert reply is not None, "bug: a chunk that runs was held to be out of place"
            check_named(row.model, row.asked.model_name, row.asked.model_version)
        except ServiceError as error:
            self._refuse(row, error)
            return
        self._replay(row, record, reply, self._cache.verified_s(slot))

    def _replay(self, row: Rows, record: Record, reply: KeptReply, verified_s: float) -> None:
        """Answers a row by a reply kept in a record that was read at `verified_s`."""
        self._observer.replayed()
        row.next_stamps = np.array([[record.incarnation, reply.position, reply.digest]])
        row.outputs = np.frombuffer(reply.outputs, np.uint8)[np.newaxis]
        row.is_replayed = True
        row.ack_level = self._level(row.asked)
        if row.ack_level:
            epoch = self._epoch if verified_s >= self._epoch_began_s() else PAST_EPOCH
            self._spawn(self._guard([row], self._confirm(row, epoch)))
        else:
            self._answer(row)

    def _level(self, asked: Asked) -> AckLevel:
        return self._limits.ack_level if asked.ack_level is None else asked.ack_level

    def _epoch_began_s(self) -> float:
        """Returns a time since which the store's connection has been one and the same."""
        if self._store.epoch != self._epoch:
            self._epoch, self._epoch_seen_s = self._store.epoch, time.monotonic()
        return self._epoch_seen_s

    # -- load ---------------------------------------------------------------------------------

    async def _load(self, cold: Sequence[Rows]) -> None:
        """Reads cold sessions in one round trip; then what waited for them is decided."""
        if failpoints.is_armed:
            await failpoints.hit("before_load")
        keys = [key for rows in cold for key in rows.keys if key not in self._cache]
        try:
            started_s, records = await self._read(keys)
        except ServiceError as error:
            for rows in cold:
                self._refuse(rows, error)
            return
        if failpoints.is_armed:
            await failpoints.hit("after_load")
        self._observer.loaded(len(keys), time.monotonic() - started_s)
        loaded = dict(zip(keys, records, strict=True))
        for rows in cold:
            self._take_in(rows, loaded, started_s)

    async def _read(self, keys: Sequence[bytes]) -> tuple[float, Sequence[Loaded]]:
        """Reads records, and returns since when they are known; again if the server changed meanwhile.

        Raises:
            StoreUnavailable: No answer in time, or one server after the other.
        """
        for _ in range(MAX_READS):
            epoch, started_s = self._store.epoch, time.monotonic()
            records = await self._store.load(keys)
            if self._store.epoch == epoch:
                return started_s, records
        raise StoreUnavailable("the store's servers keep changing", retry_after_s=0.1)

    def _take_in(self, rows: Rows, loaded: Mapping[bytes, Loaded], verified_s: float) -> None:
        """Makes sessions hot from what the store holds, and lets their chunks be decided again."""
        stays = [
            key not in loaded or self._heat(rows, place, loaded[key], verified_s)
            for place, key in enumerate(rows.keys)
        ]
        if all(stays):
            self._put_back(rows)
        elif any(stays):
            self._put_back(rows.anew(np.flatnonzero(stays)))

    def _put_back(self, rows: Rows) -> None:
        self._queue.put_back(rows, len(rows))
        self._bell.ring()

    def _heat(self, rows: Rows, place: int, data: Loaded, verified_s: float) -> bool:
        """Makes the session of a row hot; returns whether it is, else the row is answered."""
        key = rows.keys[place]
        try:
            if isinstance(data, ServiceError):
                raise data
            record = decode(data) if data is not None else None
            if record is None or record.closed or record.quarantine_reason:
                reply = rules.decide(record, rows.claim(place))
                assert record is not None, "bug: a session that is not stored runs"
                assert reply is not None, "bug: a session that is held runs"
                row = rows.one(place)
                row.model = served_model(self._models, record)
                check_named(row.model, row.asked.model_name, row.asked.model_version)
                self._cache.discard(key)
                self._replay(row, record, reply, verified_s)
                return False
            model = served_model(self._models, record)
        except ServiceError as error:
            self._cache.discard(key)
            self._refuse(rows.one(place), error)
            return False
        self._cache.put(key, model, record, verified_s=verified_s)
        return True

    # -- run ----------------------------------------------------------------------------------

    async def _run(self, ready: Sequence[Rows]) -> list[Rows]:
        """Runs a batch, model by model; what makes a model fail is refused, or goes on by itself."""
        if failpoints.is_armed:
            await failpoints.hit("before_run")
        started_s = time.monotonic()
        groups: dict[bytes, list[Rows]] = {}
        chunk_count = step_count = 0
        for rows in ready:
            groups.setdefault(rows.model.fingerprint, []).append(rows)
            chunk_count += len(rows)
            step_count += len(rows) * rows.asked.token_count
            self._observer.waited(*rows.ages_s(started_s))
        ran: list[Rows] = []
        for group in groups.values():
            if self._isolation.is_wary:
                ran += await self._run_warily(group)
            else:
                ran += self._sort_out(await self._isolation.run(group))
        if failpoints.is_armed:
            await failpoints.hit("after_run")
        self._observer.ran(chunk_count, step_count, time.monotonic() - started_s)
        return ran

    async def _run_warily(self, group: list[Rows]) -> list[Rows]:
        """Runs a batch while somebody is under suspicion.

        Where a run may not end it goes on by itself after LINGER_S, and others run meanwhile.
        """
        batches, outcome = self._isolation.split(group)
        ran = self._sort_out(outcome)
        if not self._isolation.may_stall(group[0].model):
            for batch in batches:
                ran += self._sort_out(await self._isolation.run(batch))
            return ran
        tasks = [self._spawn(self._guard(batch, self._run_aside(batch))) for batch in batches]
        if tasks:
            await asyncio.wait(tasks, timeout=LINGER_S)
        return ran

    def _sort_out(self, outcome: Outcome) -> list[Rows]:
        """Refuses what failed, lets go on by itself what needs longer, and returns what ran.

        The sessions of what goes on by itself are held until it is answered.
        """
        self._fail(outcome.failed)
        for search in outcome.searches:
            self._spawn(self._guard(search.group, self._isolation.search(search, self._take_aside)))
        for apart in outcome.apart:
            self._spawn(self._guard([apart.rows], self._run_apart(apart)))
        return outcome.ran

    async def _run_aside(self, batch: list[Rows]) -> None:
        await self._take_aside(await self._isolation.run(batch))

    async def _run_apart(self, apart: Apart) -> None:
        result = await self._isolation.run_apart(apart)
        if isinstance(result, Failed):
            self._fail([result])
        else:
            await self._commit_aside([result])

    async def _take_aside(self, outcome: Outcome) -> None:
        if ran := self._sort_out(outcome):
            await self._commit_aside(ran)

    async def _commit_aside(self, ran: list[Rows]) -> None:
        """Commits and answers what ran beside batches."""
        await self._commit_turn.acquire()
        self._spawn(self._guard(ran, self._commit(ran)))

    def _why_not(self, rows: Rows) -> list[tuple[int, ServiceError]]:
        """Returns which rows are not to run any more, by index, and why."""
        if self._is_stopping:
            return [(place, _draining()) for place in range(len(rows))]
        return [(place, _late()) for place in rows.unwanted(time.monotonic())]

    def _fail(self, failed: Sequence[Failed]) -> None:
        """Refuses chunks that made their model fail; has sessions quarantined that do so for ever."""
        for rows, error, is_incorrigible in failed:
            if is_incorrigible:
                self._spawn(self._guard([rows], self._quarantine(rows, error)))
            else:
                self._refuse(rows, error)

    async def _quarantine(self, rows: Rows, error: ServiceError) -> None:
        """Puts the session of one chunk into quarantine, and refuses the chunk."""
        [key] = rows.keys
        refusal = None
        try:
            refusal = await quarantine(self._store, rows, error.message, self._limits.session_ttl_s)
        except ServiceError as why:
            _log.warning("a session that fails again and again is not in quarantine: %s", why.message)
        if refusal is not None:
            self._observer.session_event(SessionEvent.QUARANTINED)
            self._suspects.quarantined(key)
        self._cache.discard(key)
        self._refuse(rows, refusal or error)

    # -- commit and answer --------------------------------------------------------------------

    async def _commit(self, ran: Sequence[Rows]) -> None:
        """Offers the records of a batch to the store and answers each chunk by its outcome."""
        parts: list[Rows] = []
        try:
            for rows in ran:
                parts += self._make_records(rows)
            if failpoints.is_armed:
                await failpoints.hit("before_commit")
            started_s = time.monotonic()
            refusals, epoch = await self._offer(parts) if parts else ({}, 0)
            if failpoints.is_armed:
                await failpoints.hit("after_commit")
        finally:
            self._commit_turn.release()
        self._observer.committed(
            sum(rows.writes.size_bytes for rows in parts), time.monotonic() - started_s
        )
        if failpoints.is_armed:
            await failpoints.hit("before_reply")
        first = 0
        for rows in parts:
            self._conclude(rows, refusals, first, started_s, epoch)
            first += len(rows)
        if failpoints.is_armed:
            await failpoints.hit("after_reply")

    def _make_records(self, rows: Rows) -> list[Rows]:
        parts, refused = make_records(rows, self._cache.tail)
        for place, error in refused:
            self._refuse(rows.one(place), error)
        return parts

    async def _offer(self, parts: Sequence[Rows]) -> tuple[Refusals, int]:
        """Returns what was refused, and the epoch in which the rest is known to be stored."""
        epoch = self._store.epoch
        writes = [rows.writes for rows in parts]
        try:
            return await self._store.commit(writes, self._limits.session_ttl_s), epoch
        except StoreUnavailable as error:
            epoch = self._store.epoch
            return await self._find_out(parts, error), epoch

    async def _find_out(self, parts: Sequence[Rows], error: StoreUnavailable) -> Refusals:
        """Reads back what became of records whose fate is unknown.

        A record that is found is a fact. One that is not may still arrive, from the buffer of the
        broken connection, so its caller is told to try again and the compare decides.
        """
        keys = [key for rows in parts for key in rows.keys]
        sent = [bytes(record) for rows in parts for record in rows.writes.records]
        try:
            found = await self._store.load(keys)
        except StoreUnavailable:
            return dict.fromkeys(range(len(keys)), error)
        return {
            number: error
            for number, (data, record) in enumerate(zip(found, sent, strict=True))
            if data != record
        }

    def _conclude(self, rows: Rows, refusals: Refusals, first: int, started_s: float, epoch: int) -> None:
        """Answers rows whose records count from `first`."""
        refused = [place for place in range(len(rows)) if first + place in refusals] if refusals else []
        if refused:
            applied = np.setdiff1d(np.arange(len(rows)), refused)
            if len(applied):
                self._apply(rows.take(applied), started_s, epoch)
        else:
            self._apply(rows, started_s, epoch)
        for place in refused:
            row, refusal = rows.one(place), refusals[first + place]
            if isinstance(refusal, Found):
                self._conflict(row, refusal, started_s)
            else:
                self._cache.discard(row.keys[0])
                self._refuse(row, refusal)

    def _apply(self, rows: Rows, started_s: float, epoch: int) -> None:
        """Takes committed records into memory and answers their chunks, or has them confirmed first."""
        self._cache.keep(rows, started_s)
        rows.is_replayed = False
        rows.ack_level = self._level(rows.asked)
        if rows.ack_level:
            self._spawn(self._guard([rows], self._confirm(rows, epoch)))
        else:
            self._answer(rows)

    async def _confirm(self, rows: Rows, epoch: int) -> None:
        """Answers chunks that are committed once they are as durable as asked; meanwhile others commit."""
        refusals = await self._store.confirm(rows.keys, rows.ack_level, epoch)
        if not refusals:
            self._answer(rows)
            return
        confirmed = np.setdiff1d(np.arange(len(rows)), list(refusals))
        if len(confirmed):
            self._answer(rows.take(confirmed))
        for place, refusal in refusals.items():
            assert isinstance(refusal, ServiceError), "bug: a confirmation found another record"
            row = rows.one(place)
            if not row.is_replayed:
                self._observer.applied(row.asked.token_count, *row.ages_s(time.monotonic()))
            self._refuse(row, refusal)

    def _conflict(self, row: Rows, found: Found, verified_s: float) -> None:
        """Another writer came first: decide again on what is stored now."""
        self._observer.conflicted()
        [key] = row.keys
        row = row.anew(np.array([0]))
        row.conflict_count += 1
        if row.conflict_count > MAX_CONFLICTS:
            self._cache.discard(key)
            self._refuse(row, PositionConflict("other writers keep coming first"))
        elif found.record is None and self._has_expired(key, verified_s):
            self._cache.discard(key)
            self._refuse(row, self._expired())
        else:
            self._take_in(row, {key: found.record}, verified_s)

    def _has_expired(self, key: bytes, now_s: float) -> bool:
        """Whether a record that is gone is one that this server saw, longer ago than it could live."""
        [slot], ttl_s = self._cache.find((key,)), self._limits.session_ttl_s
        if slot is None or not ttl_s:
            return False
        return now_s - self._cache.verified_s(slot) >= ttl_s

    def _expired(self) -> SessionExpired:
        return SessionExpired(
            f"the session was idle for more than {self._limits.session_ttl_s:g} s; open it again to "
            "start from position 0"
        )

    # -- ends ---------------------------------------------------------------------------------

    def _answer(self, rows: Rows) -> None:
        """Answers rows that are committed or replayed, and as durable as was asked for."""
        if not rows.is_replayed:
            now_s = time.monotonic()
            self._observer.applied(len(rows) * rows.asked.token_count, *rows.ages_s(now_s))
            if rows.chunks is not None:
                self._pace.answered(rows.keys, now_s)
        self._observer.acknowledged(rows.ack_level, len(rows))
        rows.settle()
        self._answered(rows)

    def _refuse(self, rows: Rows, error: ServiceError) -> None:
        """Answers rows that were taken from the queue with an error."""
        self._settle(rows, error)
        self._answered(rows)

    def _settle(self, rows: Rows, error: ServiceError) -> None:
        error.without_trace()
        for _ in range(rows.waiting_count()):
            self._observer.refused(error.reason)
        rows.settle(error)

    def _answered(self, rows: Rows) -> None:
        self._unanswered_count -= len(rows)
        if self._unanswered_count == 0:
            self._idle.set()
        self._release(rows.keys)

    def _release(self, keys: Iterable[bytes]) -> None:
        self._queue.release(keys)
        if self._forgotten:
            self._forget_late(self._forgotten.intersection(keys))
        self._bell.ring()

    def _forget_late(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if key not in self._queue:
                self._forgotten.remove(key)
                self._cache.discard(key)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name="engine stage")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _as_rows(item: Chunk | Rows) -> Rows:
    return item if isinstance(item, Rows) else join([item])


def _late() -> DeadlinePassed:
    return DeadlinePassed("the caller no longer waits; nothing was run")


def _draining() -> Draining:
    return Draining("this server is leaving; another one takes the request", retry_after_s=0.05)
