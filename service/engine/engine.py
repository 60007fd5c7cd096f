"""The engine: takes chunks, and answers each one after its commit. Load, run, commit, answer.

Owns the step queue, the hot sessions and the one task that drives them. Whenever the engine is free it
takes what waits: the busier it is, the larger its batches; `pace` says when more are worth a moment's
wait. The commit of a batch overlaps the run of the next one; a session whose commit is under way is held.

Chunks go through it as blocks, in arrays: those of a message in columns from the start, single ones from
the moment a batch is taken. A row leaves its block, to be looked at alone, when it does not just run.

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
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.common import failpoints
from service.common.background import RETRY_PAUSE_S, Trouble
from service.common.errors import (
    DeadlinePassed,
    Draining,
    InternalFailure,
    PositionConflict,
    ServiceError,
    SessionExpired,
    StoreUnavailable,
)
from service.engine import pace, rules
from service.engine.batch import EncodeOutputs, Ran, Steps
from service.engine.bell import Bell
from service.engine.block import Applied, Block, gather
from service.engine.busy_clock import BusyClock
from service.engine.hot_state import HotSessions, Standing
from service.engine.isolation import Apart, Failed, Isolation, Outcome
from service.engine.offer import Offer, make_offers
from service.engine.pace import Pace
from service.engine.quarantine import quarantine
from service.engine.runner import Runner
from service.engine.served import check_named, served_model
from service.engine.session_event import SessionEvent
from service.engine.step_queue import StepQueue
from service.engine.suspects import Suspects
from service.engine.work import Answer, Asked, Work, check_tokens, validate
from service.model.protocol import Model, Models
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

Items = Sequence[Work | Block]
"""What a batch is made of: single chunks, and blocks of them."""


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
        self._queue: StepQueue[bytes, Work | Block] = StepQueue(limits.max_waiting)
        self._hot = HotSessions(limits.hot_state_bytes, self._queue.__contains__)
        self._suspects = Suspects(limits.quarantine_after)
        self._isolation = Isolation(self._runner, self._suspects, self._hot.gather, self._why_not, observer)
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
        return len(self._hot), self._hot.held_bytes

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
            for work in _works(items):
                self._refuse(work, _draining())

    def submit(self, work: Work) -> None:
        """Takes a chunk; it is settled with its outcome, possibly before this returns."""
        self._pace.came(work.key)
        work.arrived_s = time.monotonic()
        self._take_over(1)
        try:
            self._check_open()
            if work.asked.ack_level:
                self._store.check_level(work.asked.ack_level)
            rules.check(work.claim)
            self._queue.push(work.key, work)
        except ServiceError as error:
            self._settle(work, error)
        else:
            self._bell.ring()

    def submit_block(self, block: Block) -> None:
        """Takes chunks of distinct sessions; their owner gets the outcomes, maybe before this returns."""
        block.arrived_s = [time.monotonic()]
        self._take_over(len(block))
        try:
            self._check_open()
            if block.asked.ack_level:
                self._store.check_level(block.asked.ack_level)
            self._queue.push_group(block.keys, block)
        except ServiceError as error:
            for work in block.works():
                self._settle(work, error)
        else:
            self._bell.ring()

    def forget(self, key: bytes) -> None:
        """Drops a session from memory, because its record was changed by other means than a chunk."""
        if key in self._queue:
            self._forgotten.add(key)  # once what is under way is answered
        else:
            self._hot.discard(key)

    def _take_over(self, count: int) -> None:
        self._unanswered_count += count
        self._idle.clear()

    def _check_open(self) -> None:
        if self._is_draining:
            raise _draining()

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
            self._spawn(self._guard([result.steps.block for result in ran], self._commit(ran)))

    async def _guard(self, items: Items, coroutine: Coroutine[Any, Any, None]) -> None:
        """Answers the chunks of a stage that failed in a way nobody foresaw; the loop goes on."""
        try:
            await coroutine
        except Exception:  # noqa: BLE001 -- whatever it is, these callers get an answer
            _log.exception("bug: a stage of the engine failed")
            for work in _works(items):
                if not work.is_answered:
                    self._hot.discard(work.key)
                    self._refuse(work, InternalFailure("the server failed on this chunk"))

    # -- plan ---------------------------------------------------------------------------------

    def _plan(self, items: Items) -> tuple[list[Steps], list[Work | Block]]:
        """Sorts chunks into steps to run and sessions to load; answers the rest."""
        blocks, cold = self._to_blocks(items)
        ready: list[Steps] = []
        for block in blocks:
            slots = self._hot.find(block.keys)
            if None in slots:
                cold.append(block)
            else:
                ready += self._decide(block, np.array(slots), cold)
        return ready, cold

    def _to_blocks(self, items: Items) -> tuple[list[Block], list[Work | Block]]:
        """Drops what nobody waits for, and joins single chunks of hot sessions that ask for the same."""
        now_s = time.monotonic()
        blocks: list[Block] = []
        cold: list[Work | Block] = []
        alike: dict[Asked, list[Work]] = {}
        for item in items:
            if isinstance(item, Block):
                if item.owner.is_cancelled or item.deadline_s < now_s:
                    self._refuse_all(item, _late())
                else:
                    blocks.append(item)
            elif item.is_cancelled or item.deadline_s < now_s:
                self._refuse(item, _late())
            elif item.key in self._hot:
                alike.setdefault(item.asked, []).append(item)
            else:
                cold.append(item)
        blocks += map(gather, alike.values())
        return blocks, cold

    def _decide(self, block: Block, slots: NDArray[np.int64], cold: list[Work | Block]) -> list[Steps]:
        """Returns what runs, split by model; looks at the other rows one by one."""
        standing = self._hot.standing(slots)
        runs = rules.continues(
            standing.stamps, block.positions, block.incarnations, block.digests, block.asked.token_count
        )
        if block.acknowledged is not None:
            is_ahead = rules.sends_ahead(standing.stamps, block.acknowledged)
            runs &= ~is_ahead | self._hot.has_tails(slots, self._epoch_began_s())
        if np.count_nonzero(runs) < len(block):
            for place in np.flatnonzero(~runs).tolist():
                self._decide_alone(block.work(place), int(slots[place]), cold)
            chosen = np.flatnonzero(runs)
            block, slots, standing = block.part(chosen), slots[chosen], standing.part(chosen)
        numbers = standing.models
        if len(block) and np.count_nonzero(numbers == numbers[0]) == len(block):
            return self._check(block, slots, standing)
        ready: list[Steps] = []
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            ready += self._check(block.part(chosen), slots[chosen], standing.part(chosen))
        return ready

    def _check(self, block: Block, slots: NDArray[np.int64], standing: Standing) -> list[Steps]:
        """Returns the rows that suit their model, none or one block; refuses the others."""
        model = self._hot.model(standing.models[0])
        try:
            selection = validate(block.asked, model)
        except ServiceError as error:
            self._refuse_all(block, error)
            return []
        steps = Steps(block, slots, standing, model, selection)
        wrong = check_tokens(block.asked, block.tokens, model.contract)
        if not wrong:
            return [steps]
        for place, reason in wrong.items():
            self._refuse(block.work(place), reason)
        chosen = np.setdiff1d(np.arange(len(block)), list(wrong))
        return [steps.part(chosen)] if len(chosen) else []

    def _decide_alone(self, work: Work, slot: int, cold: list[Work | Block]) -> None:
        """Answers a chunk that does not just run, or has it loaded if the answer could be out of date.

        What was known before the store's connection broke may be what another server never had.
        """
        if not self._hot.knows_all(slot, max(work.arrived_s, self._epoch_began_s())):
            self._hot.discard(work.key)
            cold.append(work)
            return
        record, model = self._hot.record(slot), self._hot.model_at(slot)
        try:
            reply = rules.decide(record, work.claim)
            assert reply is not None, "bug: a chunk that runs was held to be out of place"
            check_named(model, work.asked.model_name, work.asked.model_version)
        except ServiceError as error:
            self._refuse(work, error)
            return
        self._replay(work, record, model, reply, self._hot.verified_s(slot))

    def _replay(
        self, work: Work, record: Record, model: Model, reply: KeptReply, verified_s: float
    ) -> None:
        """Answers a chunk by a reply kept in a record that was read at `verified_s`."""
        self._observer.replayed()
        level = self._level(work.asked)
        answer = Answer(
            record.incarnation, reply.position, reply.digest, model.version, True, reply.outputs, level
        )
        if level:
            epoch = self._epoch if verified_s >= self._epoch_began_s() else PAST_EPOCH
            self._spawn(self._guard([work], self._confirm_replay(work, answer, epoch)))
        else:
            self._give(work, answer)

    def _give(self, work: Work, answer: Answer) -> None:
        self._observer.acknowledged(answer.ack_level, 1)
        self._settle(work, answer)
        self._release((work.key,))

    def _level(self, asked: Asked) -> AckLevel:
        return self._limits.ack_level if asked.ack_level is None else asked.ack_level

    def _epoch_began_s(self) -> float:
        """Returns a time since which the store's connection has been one and the same."""
        if self._store.epoch != self._epoch:
            self._epoch, self._epoch_seen_s = self._store.epoch, time.monotonic()
        return self._epoch_seen_s

    # -- load ---------------------------------------------------------------------------------

    async def _load(self, items: Items) -> None:
        """Reads cold sessions in one round trip; then what waited for them is decided."""
        if failpoints.is_armed:
            await failpoints.hit("before_load")
        keys = [key for item in items for key in self._cold_keys(item)]
        try:
            started_s, records = await self._read(keys)
        except ServiceError as error:
            for work in _works(items):
                self._refuse(work, error)
            return
        if failpoints.is_armed:
            await failpoints.hit("after_load")
        self._observer.loaded(len(keys), time.monotonic() - started_s)
        loaded = dict(zip(keys, records, strict=True))
        for item in items:
            if isinstance(item, Work):
                self._take_in(item, loaded[item.key], started_s)
            else:
                self._take_in_block(item, loaded, started_s)

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

    def _cold_keys(self, item: Work | Block) -> list[bytes]:
        if isinstance(item, Work):
            return [item.key]
        slots = self._hot.find(item.keys)
        return [key for key, slot in zip(item.keys, slots, strict=True) if slot is None]

    def _take_in(self, work: Work, data: Loaded, verified_s: float) -> None:
        """Makes a session hot from what the store holds, and lets its chunk be decided again."""
        if self._heat(work, data, verified_s):
            self._put_back(work, 1)

    def _take_in_block(self, block: Block, loaded: dict[bytes, Loaded], verified_s: float) -> None:
        """Makes the cold sessions of a block hot; rows that have none leave it."""
        stays = np.ones(len(block), np.bool_)
        for place, key in enumerate(block.keys):
            if key not in loaded:
                continue
            stays[place] = self._heat(block.work(place), loaded[key], verified_s)
        if stays.all():
            self._put_back(block, len(block))
        elif stays.any():
            self._put_back(block.part(np.flatnonzero(stays)), int(stays.sum()))

    def _put_back(self, item: Work | Block, count: int) -> None:
        self._queue.put_back(item, count)
        self._bell.ring()

    def _heat(self, work: Work, data: Loaded, verified_s: float) -> bool:
        """Makes the session of a chunk hot; returns whether it is, else the chunk is answered."""
        try:
            if isinstance(data, ServiceError):
                raise data
            record = decode(data) if data is not None else None
            if record is None or record.closed or record.quarantine_reason:
                reply = rules.decide(record, work.claim)
                assert record is not None, "bug: a session that is not stored runs"
                assert reply is not None, "bug: a session that is held runs"
                model = served_model(self._models, record)
                check_named(model, work.asked.model_name, work.asked.model_version)
                self._hot.discard(work.key)
                self._replay(work, record, model, reply, verified_s)
                return False
            model = served_model(self._models, record)
        except ServiceError as error:
            self._hot.discard(work.key)
            self._refuse(work, error)
            return False
        self._hot.put(work.key, model, record, verified_s=verified_s)
        return True

    # -- run ----------------------------------------------------------------------------------

    async def _run(self, ready: Sequence[Steps]) -> list[Ran]:
        """Runs a batch, model by model; what makes a model fail is refused, or goes on by itself."""
        if failpoints.is_armed:
            await failpoints.hit("before_run")
        started_s = time.monotonic()
        groups: dict[bytes, list[Steps]] = {}
        chunk_count = step_count = 0
        for steps in ready:
            groups.setdefault(steps.model.fingerprint, []).append(steps)
            chunk_count += len(steps.block)
            step_count += len(steps.block) * steps.block.asked.token_count
            self._observer.waited(*steps.block.ages_s(started_s))
        ran: list[Ran] = []
        for group in groups.values():
            if self._isolation.is_wary:
                ran += await self._run_warily(group)
            else:
                ran += self._sort_out(await self._isolation.run(group))
        if failpoints.is_armed:
            await failpoints.hit("after_run")
        self._observer.ran(chunk_count, step_count, time.monotonic() - started_s)
        return ran

    async def _run_warily(self, group: list[Steps]) -> list[Ran]:
        """Runs a batch while somebody is under suspicion.

        Where a run may not end it goes on by itself after LINGER_S, and others run meanwhile.
        """
        batches, outcome = self._isolation.split(group)
        ran = self._sort_out(outcome)
        if not self._isolation.may_stall(group[0].model):
            for batch in batches:
                ran += self._sort_out(await self._isolation.run(batch))
            return ran
        tasks = [
            self._spawn(self._guard([steps.block for steps in batch], self._run_aside(batch)))
            for batch in batches
        ]
        if tasks:
            await asyncio.wait(tasks, timeout=LINGER_S)
        return ran

    def _sort_out(self, outcome: Outcome) -> list[Ran]:
        """Refuses what failed, lets go on by itself what needs longer, and returns what ran.

        The sessions of what goes on by itself are held until it is answered.
        """
        self._fail(outcome.failed)
        for search in outcome.searches:
            blocks = [steps.block for steps in search.group]
            self._spawn(self._guard(blocks, self._isolation.search(search, self._take_aside)))
        for apart in outcome.apart:
            self._spawn(self._guard([apart.steps.block], self._run_apart(apart)))
        return outcome.ran

    async def _run_aside(self, batch: list[Steps]) -> None:
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

    async def _commit_aside(self, ran: list[Ran]) -> None:
        """Commits and answers what ran beside batches."""
        await self._commit_turn.acquire()
        self._spawn(self._guard([result.steps.block for result in ran], self._commit(ran)))

    def _why_not(self, work: Work) -> ServiceError | None:
        if self._is_stopping:
            return _draining()
        return _late() if work.is_cancelled or work.deadline_s < time.monotonic() else None

    def _fail(self, failed: Sequence[Failed]) -> None:
        """Refuses chunks that made their model fail; has sessions quarantined that do so for ever."""
        for steps, error, is_incorrigible in failed:
            if is_incorrigible:
                self._spawn(self._guard([steps.block], self._quarantine(steps, error)))
            else:
                self._refuse_all(steps.block, error)

    async def _quarantine(self, steps: Steps, error: ServiceError) -> None:
        """Puts the session of one chunk into quarantine, and refuses the chunk."""
        work = steps.block.work(0)
        refusal = None
        try:
            refusal = await quarantine(self._store, steps, error.message, self._limits.session_ttl_s)
        except ServiceError as why:
            _log.warning("a session that fails again and again is not in quarantine: %s", why.message)
        if refusal is not None:
            self._observer.session_event(SessionEvent.QUARANTINED)
            self._suspects.quarantined(work.key)
        self._hot.discard(work.key)
        self._refuse(work, refusal or error)

    # -- commit and answer --------------------------------------------------------------------

    async def _commit(self, ran: Sequence[Ran]) -> None:
        """Offers the records of a batch to the store and answers each chunk by its outcome."""
        offers: list[Offer] = []
        try:
            for result in ran:
                offers += self._make_offers(result)
            if failpoints.is_armed:
                await failpoints.hit("before_commit")
            started_s = time.monotonic()
            refusals, epoch = await self._offer(offers) if offers else ({}, 0)
            if failpoints.is_armed:
                await failpoints.hit("after_commit")
        finally:
            self._commit_turn.release()
        self._observer.committed(
            sum(offer.writes.size_bytes for offer in offers), time.monotonic() - started_s
        )
        if failpoints.is_armed:
            await failpoints.hit("before_reply")
        first = 0
        for offer in offers:
            self._conclude(offer, refusals, first, started_s, epoch)
            first += len(offer.stamps)
        if failpoints.is_armed:
            await failpoints.hit("after_reply")

    def _make_offers(self, ran: Ran) -> list[Offer]:
        offers, refused = make_offers(ran, self._hot.tail)
        block = ran.steps.block
        for place, error in refused:
            self._refuse(block.work(place), error)
        return offers

    async def _offer(self, offers: Sequence[Offer]) -> tuple[Refusals, int]:
        """Returns what was refused, and the epoch in which the rest is known to be stored."""
        epoch = self._store.epoch
        writes = [offer.writes for offer in offers]
        try:
            return await self._store.commit(writes, self._limits.session_ttl_s), epoch
        except StoreUnavailable as error:
            epoch = self._store.epoch
            return await self._find_out(offers, error), epoch

    async def _find_out(self, offers: Sequence[Offer], error: StoreUnavailable) -> Refusals:
        """Reads back what became of records whose fate is unknown.

        A record that is found is a fact. One that is not may still arrive, from the buffer of the
        broken connection, so its caller is told to try again and the compare decides.
        """
        keys = [key for offer in offers for key in offer.writes.keys]
        sent = [bytes(record) for offer in offers for record in offer.writes.records]
        try:
            found = await self._store.load(keys)
        except StoreUnavailable:
            return dict.fromkeys(range(len(keys)), error)
        return {
            number: error
            for number, (data, record) in enumerate(zip(found, sent, strict=True))
            if data != record
        }

    def _conclude(self, offer: Offer, refusals: Refusals, first: int, started_s: float, epoch: int) -> None:
        """Answers the rows of an offer, whose records count from `first`."""
        steps = offer.steps
        refused = (
            [place for place in range(len(steps.block)) if first + place in refusals] if refusals else []
        )
        if refused:
            applied = np.setdiff1d(np.arange(len(steps.block)), refused)
            if len(applied):
                self._apply(_part(offer, applied), started_s, epoch)
        else:
            self._apply(offer, started_s, epoch)
        for place in refused:
            work = steps.block.work(place)
            refusal = refusals[first + place]
            if isinstance(refusal, Found):
                self._conflict(work, refusal, started_s)
            else:
                self._hot.discard(work.key)
                self._refuse(work, refusal)

    def _apply(self, offer: Offer, started_s: float, epoch: int) -> None:
        """Takes committed records into memory and answers their chunks, or has them confirmed first."""
        steps, block = offer.steps, offer.steps.block
        self._hot.keep(steps.slots, steps.standing, offer.stamps, offer.states, offer.tails, started_s)
        level = self._level(block.asked)
        if level:
            self._spawn(self._guard([block], self._confirm(offer, level, epoch)))
        else:
            self._answer(offer, level)

    def _answer(self, offer: Offer, level: AckLevel) -> None:
        steps, block = offer.steps, offer.steps.block
        now_s = time.monotonic()
        self._observer.applied(len(block) * block.asked.token_count, *block.ages_s(now_s))
        self._observer.acknowledged(level, len(block))
        if block.is_gathered:
            self._pace.answered(block.keys, now_s)
        block.owner.applied(Applied(block.rows, offer.stamps, steps.model.version, offer.outputs, level))
        self._answered(len(block))
        self._release(block.keys)

    async def _confirm(self, offer: Offer, level: AckLevel, epoch: int) -> None:
        """Answers chunks that are committed once they are as durable as asked; meanwhile others commit."""
        block = offer.steps.block
        refusals = await self._store.confirm(block.keys, level, epoch)
        if not refusals:
            self._answer(offer, level)
            return
        late = np.array(sorted(refusals))
        confirmed = np.setdiff1d(np.arange(len(block)), late)
        if len(confirmed):
            self._answer(_part(offer, confirmed), level)
        unconfirmed = block.part(late)
        self._observer.applied(len(late) * block.asked.token_count, *unconfirmed.ages_s(time.monotonic()))
        for place, refusal in refusals.items():
            assert isinstance(refusal, ServiceError), "bug: a confirmation found another record"
            self._refuse(block.work(place), refusal)

    async def _confirm_replay(self, work: Work, answer: Answer, epoch: int) -> None:
        refusals = await self._store.confirm((work.key,), answer.ack_level, epoch)
        refusal = refusals.get(0)
        if isinstance(refusal, ServiceError):
            self._refuse(work, refusal)
        else:
            self._give(work, answer)

    def _conflict(self, work: Work, found: Found, verified_s: float) -> None:
        """Another writer came first: decide again on what is stored now."""
        self._observer.conflicted()
        work.conflict_count += 1
        if work.conflict_count > MAX_CONFLICTS:
            self._hot.discard(work.key)
            self._refuse(work, PositionConflict("other writers keep coming first"))
        elif found.record is None and self._has_expired(work.key, verified_s):
            self._hot.discard(work.key)
            self._refuse(work, self._expired())
        else:
            self._take_in(work, found.record, verified_s)

    def _has_expired(self, key: bytes, now_s: float) -> bool:
        """Whether a record that is gone is one that this server saw, longer ago than it could live."""
        [slot], ttl_s = self._hot.find((key,)), self._limits.session_ttl_s
        if slot is None or not ttl_s:
            return False
        return now_s - self._hot.verified_s(slot) >= ttl_s

    def _expired(self) -> SessionExpired:
        return SessionExpired(
            f"the session was idle for more than {self._limits.session_ttl_s:g} s; open it again to "
            "start from position 0"
        )

    # -- ends ---------------------------------------------------------------------------------

    def _refuse_all(self, block: Block, error: ServiceError) -> None:
        for work in block.works():
            self._refuse(work, error)

    def _refuse(self, work: Work, error: ServiceError) -> None:
        """Answers a chunk that was taken from the queue with an error."""
        self._settle(work, error)
        self._release((work.key,))

    def _settle(self, work: Work, outcome: Answer | ServiceError) -> None:
        if isinstance(outcome, ServiceError):
            outcome.without_trace()
            if not work.is_cancelled:
                self._observer.refused(outcome.reason)
        work.settle(outcome)
        self._answered(1)

    def _answered(self, count: int) -> None:
        self._unanswered_count -= count
        if self._unanswered_count == 0:
            self._idle.set()

    def _release(self, keys: Iterable[bytes]) -> None:
        self._queue.release(keys)
        if self._forgotten:
            self._forget_late(self._forgotten.intersection(keys))
        self._bell.ring()

    def _forget_late(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if key not in self._queue:
                self._forgotten.remove(key)
                self._hot.discard(key)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name="engine stage")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _works(items: Items) -> Iterable[Work]:
    """Yields every chunk as one of its own."""
    for item in items:
        if isinstance(item, Work):
            yield item
        else:
            yield from item.works()


def _part(offer: Offer, chosen: NDArray[np.int64]) -> Offer:
    return offer._replace(
        steps=offer.steps.part(chosen),
        stamps=offer.stamps[chosen],
        states=offer.states[chosen],
        outputs=offer.outputs[chosen],
        tails=None if offer.tails is None else [offer.tails[place] for place in chosen.tolist()],
    )


def _late() -> DeadlinePassed:
    return DeadlinePassed("the caller no longer waits; nothing was run")


def _draining() -> Draining:
    return Draining("this server is leaving; another one takes the request", retry_after_s=0.05)
