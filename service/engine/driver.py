"""The driver: performs what the core decides, with the store, the models, the clock, and reports back.

One task takes batches whenever the engine is free, so that the busier it is, the larger they are; `window`
says when more chunks are worth a moment's wait. Everything else is a task of its own: loads while others
run, one commit, which overlaps the run of the next batch, confirmations, and what runs beside batches.

No exception of a model or the store ends the task that takes batches.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from holdfast.errors import ServiceError, StoreUnavailable
from service.common import failpoints
from service.common.background import RETRY_PAUSE_S, Trouble, Wake
from service.engine.core import Core
from service.engine.effects import Commit, Confirm, Effect, Kind, Load, Quarantine, Run, Settle, rows_of
from service.engine.limits import EngineLimits
from service.engine.quarantine import quarantine
from service.engine.records import make_records
from service.engine.report import BatchReport
from service.engine.rows import Chunk, Rows, answer
from service.engine.run import Encode
from service.engine.runner import Runner
from service.engine.stages import note
from service.engine.watched import Watched
from service.engine.window import Window
from service.model.protocol import Models
from service.store.outputs import encode_outputs
from service.store.protocol import Found, Refusals, StateStore

_log = logging.getLogger(__name__)

LONE_ROWS = 16
"""A commit of so few rows takes a moment, for which no task is made."""

LINGER_S = 0.02
"""Others wait for so long for a batch of a model that may stall."""


class Driver:
    """Takes chunks, and answers each one after its commit.

    Args:
        models: The models served.
        store: Where sessions live.
        count: Takes what was done, and counts it.
        limits: Bounds.
        encode: Turns what chunks gave into the bytes that are stored and sent.

    Attributes:
        watched: Is told what becomes of sessions; None while nobody watches one.
        is_traced: Stages are noted for calls.
        probe: Weighs what follows a raw state, without a token: `Runner.probe`.
    """

    def __init__(
        self,
        models: Models,
        store: StateStore,
        count: Callable[[BatchReport], None],
        limits: EngineLimits,
        encode: Encode = encode_outputs,
    ) -> None:
        self._store = store
        self.watched: Watched | None = None
        self.is_traced = False
        self._runner = Runner(encode, limits.run_timeout_s)
        self.probe = self._runner.probe
        self._count = count
        self._report = BatchReport()
        self._is_counting = False
        self._loop = asyncio.get_running_loop()
        self._session_ttl_s = limits.session_ttl_s
        self._max_batch = limits.max_batch
        self._core = Core(models, limits, store.epoch, time.monotonic())
        self._window = Window()
        self._wake = Wake()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._driving: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._idle = asyncio.Event()

    def start(self) -> None:
        """Starts the task that takes batches."""
        self._driving = asyncio.create_task(self._drive(), name="engine")

    def hot_usage(self) -> tuple[int, int]:
        """Returns the number of sessions in memory, and the bytes of their states and kept replies."""
        return len(self._core.cache.slots), self._core.cache.held_bytes

    async def drain(self) -> None:
        """Refuses new chunks and waits until those taken are answered."""
        self._core.drain()
        if self._core.unanswered_count:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Finishes the batch under way; chunks still waiting are refused as Draining.

        Cancelled, it gives up what is under way: nobody is told what became of it.
        """
        self._is_stopping = True
        self._wake.ring()
        try:
            self._perform(self._core.stop(time.monotonic()))
            if self._driving is not None:
                await self._driving
            while self._tasks:  # a commit that ends may leave a confirmation behind
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            for task in self._tasks:
                task.cancel()
            self._runner.close()
            self._window.close()
        self._perform(self._core.refuse_waiting(time.monotonic()))
        self._hand_over()

    def submit(self, chunk: Chunk) -> None:
        """Takes a chunk; it is settled with what it gets, possibly before this returns."""
        self._window.came(chunk.key)
        try:
            if chunk.asked.ack_level:
                self._store.check_level(chunk.asked.ack_level)
            self._core.submit(chunk, time.monotonic())
        except ServiceError as error:
            if not chunk.is_cancelled:
                self._report.refused.append(error.reason)
            answer(chunk.reply, chunk, error.without_trace())
            self._hand_over()
        else:
            if self._core.is_ready:
                self._wake.ring()

    def submit_rows(self, rows: Rows) -> None:
        """Takes rows of a message; it gets what became of them, maybe before this returns."""
        try:
            if rows.asked.ack_level:
                self._store.check_level(rows.asked.ack_level)
            self._core.submit_rows(rows, time.monotonic())
        except ServiceError as error:
            self._settle(Settle(rows, error))
            self._hand_over()
        else:
            if self._core.is_ready:
                self._wake.ring()

    def forget(self, key: bytes) -> None:
        """Drops a session from memory, because its record was changed by other means than a chunk."""
        self._core.forget(key)
        if self.watched is not None:
            self.watched.changed(key)

    # -- batches ------------------------------------------------------------------------------

    async def _drive(self) -> None:
        trouble = Trouble("engine")
        while not self._is_stopping:
            if not self._core.is_ready:
                await self._wake.wait()
                continue
            with trouble:
                now_s = time.monotonic()
                if self._window.sample(now_s):
                    await self._window.gather(self._core, now_s)
                await self._take()
                if self._core.is_ready:
                    await asyncio.sleep(0)  # requests and replies move between batches
                continue
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _take(self) -> None:
        """Takes a batch and runs it; loads are waited for where nobody else waits."""
        try:
            effects = self._core.next(time.monotonic(), self._store.epoch)
        except Exception:  # noqa: BLE001 -- whatever it is, these callers get an answer
            self._break(None)
            return
        batch: list[Run] = []
        others: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Run) and effect.kind is Kind.BATCH:
                batch.append(effect)
            else:
                others.append(effect)
        if others:
            if len(effects) == 1 and self._is_lone(others):
                await self._do(others[0])
                return
            self._perform(others)
        if batch and batch[0].is_aside:  # those aside come first
            aside = [self._spawn(run) for run in batch if run.is_aside]
            await asyncio.wait(aside, timeout=LINGER_S)
        for run in batch:
            if not run.is_aside:
                await self._do(run, is_last=run is batch[-1])

    # -- effects ------------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Settles at once, in order, and begins the rest."""
        has_settled = False
        for effect in effects:
            if isinstance(effect, Settle):
                self._settle(effect)
                has_settled = True
            else:
                self._spawn(effect)
        if has_settled and not self._is_counting:  # those who are woken by their answers go first
            self._is_counting = True
            self._loop.call_soon(self._hand_over)
        if not self._core.unanswered_count:
            self._idle.set()
        if self._core.due_s is not None or self._timer is not None:
            self._set_timer(self._core.due_s)
        if self._core.is_ready:
            self._wake.ring()

    def _is_lone(self, effects: Sequence[Effect]) -> bool:
        """Whether they are one thing to wait for that nobody waits behind: it needs no task of its own."""
        if len(effects) != 1 or self._core.has_free or self._core.due_s is not None:
            return False
        match effects[0]:
            case Load(keys=keys):  # nor should a full batch wait for what many sessions take to load
                return len(keys) < self._max_batch
            case Commit(rows=parts):  # a full batch that comes meanwhile should run beside a long one
                return sum(len(rows.keys) for rows in parts) <= LONE_ROWS
        return False

    def _hand_over(self) -> None:
        """Has counted what was done."""
        self._is_counting = False
        report, self._report = self._report, BatchReport()
        self._count(report)

    def _set_timer(self, due_s: float | None) -> None:
        """Comes back when something may go on that had to wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None:
            wait_s = max(0.0, due_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._perform(self._core.due(time.monotonic()))

    def _spawn(self, effect: Effect) -> asyncio.Task[None]:
        task = asyncio.create_task(self._do(effect), name="engine stage")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _do(self, effect: Effect, *, is_last: bool = False) -> None:
        """Performs an effect; one that fails in a way that nobody foresaw is answered, too."""
        try:
            match effect:
                case Run():
                    await self._run(effect, is_last=is_last)
                case Commit():
                    await self._commit(effect)
                case Load():
                    await self._load(effect)
                case Confirm():
                    await self._confirm(effect)
                case Quarantine():
                    await self._quarantine(effect)
                case _:
                    raise AssertionError("bug: an effect that nobody performs")
        except Exception:  # noqa: BLE001 -- whatever it is, these callers get an answer
            self._break(effect)

    def _break(self, effect: Effect | None) -> None:
        _log.exception("bug: a stage of the engine failed")
        try:
            effects = self._core.broke(effect, time.monotonic())
        except Exception:  # noqa: BLE001 -- the same
            _log.exception("bug: what may begin after a stage of the engine failed, failed too")
            effects = self._core.broke(None, time.monotonic())
        self._perform(effects)

    async def _load(self, load: Load) -> None:
        is_cold = load.commit is None
        if is_cold and failpoints.is_armed:
            await failpoints.hit("before_load")
        load.began_s, load.epoch = time.monotonic(), self._store.epoch
        try:
            records = await self._store.load(load.keys)
        except ServiceError as error:
            self._count_commit(load.commit)
            self._perform(self._core.unread(load, error, time.monotonic()))
            return
        if is_cold:
            if failpoints.is_armed:
                await failpoints.hit("after_load")
            self._report.loads.append((len(load.keys), time.monotonic() - load.began_s))
        if self.is_traced:
            note(load.rows, "load", load.began_s, time.monotonic())
        self._count_commit(load.commit)
        self._perform(self._core.loaded(load, records, self._store.epoch, time.monotonic()))

    async def _run(self, run: Run, *, is_last: bool) -> None:
        if failpoints.is_armed and run.kind is Kind.BATCH:
            await failpoints.hit("before_run")
        started_s = time.monotonic()
        chunk_count = 0
        failures = []
        if run.kind is Kind.SEARCH and run.is_again:
            self._report.rerun_count += 1
        for group in run.groups:
            for rows in group:
                chunk_count += len(rows.keys)
                if not run.is_again:
                    self._report.waits.append(rows.ages_s(started_s))
            failure = await self._runner.run(group, run.kind, in_thread=run.in_thread)
            failures.append(failure)
            if failure is not None and failure.was_halted:
                self._report.halt_count += 1
        if failpoints.is_armed and run.kind is Kind.BATCH:
            await failpoints.hit("after_run")
        now_s = time.monotonic()
        if not run.is_again:
            self._report.runs.append((chunk_count, now_s - started_s))
        if self.is_traced:
            note(rows_of(run), "run", started_s, now_s)
        effects = self._core.ran(run, failures, now_s)
        if is_last and self._is_lone(effects):
            await self._do(effects[0])
        else:
            self._perform(effects)

    async def _commit(self, commit: Commit) -> None:
        if failpoints.is_armed:
            await failpoints.hit("before_commit")
        for rows in commit.rows:
            make_records(rows)
        commit.began_s, commit.epoch = time.monotonic(), self._store.epoch
        try:
            refusals = await self._store.commit([rows.writes for rows in commit.rows], self._session_ttl_s)
        except StoreUnavailable as error:
            self._perform(self._core.lost(commit, error, time.monotonic()))
            return
        if failpoints.is_armed:
            await failpoints.hit("after_commit")
            await failpoints.hit("before_reply")
        self._count_commit(commit)
        if self.is_traced:
            note(commit.rows, "commit", commit.began_s, time.monotonic())
        if refusals:
            self._report.conflict_count += sum(isinstance(why, Found) for why in refusals.values())
        self._perform(self._core.committed(commit, refusals, self._store.epoch, time.monotonic()))
        if failpoints.is_armed:
            await failpoints.hit("after_reply")

    def _count_commit(self, commit: Commit | None) -> None:
        """Counts a commit whose outcome is known."""
        if commit is not None:
            size_bytes = 0
            for rows in commit.rows:
                size_bytes += rows.writes.size_bytes
            self._report.commits.append((size_bytes, time.monotonic() - commit.began_s))

    async def _confirm(self, confirm: Confirm) -> None:
        rows, began_s = confirm.rows, time.monotonic()
        refusals: Refusals = await self._store.confirm(rows.keys, rows.ack_level, confirm.epoch)
        if self.is_traced:
            note([rows], "confirm", began_s, time.monotonic())
        self._perform(self._core.confirmed(confirm, refusals, time.monotonic()))

    async def _quarantine(self, effect: Quarantine) -> None:
        refusal = await quarantine(self._store, effect, self._session_ttl_s)
        if refusal is not None:
            self._report.quarantine_count += 1
        self._perform(self._core.quarantined(effect, refusal, time.monotonic()))

    def _settle(self, settle: Settle) -> None:
        """Notes what is to be counted, and tells the callers."""
        (rows, error, is_applied), report = settle, self._report
        count = len(rows.keys)
        if error is None or is_applied:
            if rows.is_replayed:
                report.replay_count += count
            else:
                now_s = time.monotonic()
                report.step_count += count * rows.asked.token_count
                report.answers.append(rows.ages_s(now_s))
                if rows.chunks is not None:
                    self._window.answered(rows.keys, now_s)
        if error is None:
            report.acknowledged.append((rows.ack_level, count))
        else:
            error.without_trace()
            report.refused += [error.reason] * rows.waiting_count()
        rows.settle(error)
        if self.watched is not None:
            self.watched.settled(settle)
