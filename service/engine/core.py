"""The core: decides what becomes of every chunk. Pure: no clock, no store, no run; times are given.

Events go in by the methods, what is to be done comes out as effects, and the driver reports what came of
each. A session whose chunk was taken is held, by the queue, until the chunk is settled; meanwhile the chunk
is in exactly one place: in an effect under way, among the jobs of `failures`, in a commit that waits for
the one before, or put back into the queue. One commit is under way at a time.

Invariants:
- Every chunk that is taken is settled exactly once, whatever the model or the store does.
- A success is settled only after its commit, and once that is as durable as was asked for.
- A refusal that depends on the stored position, and a replay, rests only on a record that was read after
  the chunk arrived, over the present connection to the store; see `rules`.
- A record whose commit has an unknown outcome is read back before anything else is committed.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from holdfast.errors import InternalFailure, PositionConflict, ServiceError, StoreUnavailable
from service.engine.cache import Cache
from service.engine.effects import (
    Commit,
    Confirm,
    Effect,
    Failure,
    Load,
    Quarantine,
    Run,
    Settle,
    outcomes,
    rows_of,
    unproven,
)
from service.engine.failures import Failures, Refused
from service.engine.heat import heat, heat_alike
from service.engine.limits import EngineLimits
from service.engine.plan import Plan, join, joins_batch
from service.engine.queue import Queue
from service.engine.records import fit_rows
from service.engine.rows import Chunk, Rows
from service.engine.rules import Claim, check, draining, expired
from service.model.protocol import Models
from service.store.protocol import Found, Loaded, Refusals

MAX_CONFLICTS = 16
"""A chunk without position that loses against other writers so often gives up."""

MAX_READS = 4
"""Reads of the same records, each across a change of the server that answers."""

PAST_EPOCH = -1
"""An epoch of the store that is over: what belongs to it is not confirmed."""


class Core:
    """Applies chunks exactly once.

    Args:
        models: The models served.
        limits: Bounds.
        epoch: Of the store, now.
        now_s: Monotonic time.

    Attributes:
        cache: Sessions in memory.
        unanswered_count: Chunks that were taken and are not answered.
        due_s: Monotonic time of the next `due`; None if nothing waits for a time.
    """

    def __init__(self, models: Models, limits: EngineLimits, epoch: int = 0, now_s: float = 0.0) -> None:
        self._models = models
        self._limits = limits
        self._queue: Queue[bytes, Chunk | Rows] = Queue(limits.max_waiting)
        self.cache = Cache(limits.hot_state_bytes, self._queue.busy)
        self._failures = Failures(limits.quarantine_after)
        self._to_commit: deque[Commit] = deque()
        self._committing: Commit | None = None
        self._forgotten: set[bytes] = set()
        self.unanswered_count = 0
        self.due_s: float | None = None
        self._is_draining = False
        self._epoch = epoch
        self._epoch_seen_s = now_s
        self._taken: Sequence[Chunk | Rows] = ()  # of the event that is handled, as are these two
        self._again: list[Rows] = []
        self._effects: list[Effect] = []

    @property
    def has_free(self) -> bool:
        """Whether chunks wait whose sessions are free."""
        return bool(self._queue.ready)

    @property
    def is_ready(self) -> bool:
        """Whether to take a batch: not while a commit waits, nor a small one while one is under way."""
        if not self._queue.ready or self._to_commit:
            return False
        return self._committing is None or self.is_full

    @property
    def is_full(self) -> bool:
        """Whether as many chunks wait as a batch takes."""
        return self._queue.waiting_count >= self._limits.max_batch

    # -- what comes in ------------------------------------------------------------------------

    def submit(self, chunk: Chunk, now_s: float) -> None:
        """Takes a chunk; it is settled some time.

        Raises:
            ServiceError: It is not taken.
        """
        if self._is_draining:
            raise draining()
        claimed = chunk.position, chunk.acknowledged, chunk.incarnation, chunk.digest
        check(Claim(chunk.asked.token_count, b"", *claimed))  # its tokens are held against a model
        self._queue.push(chunk.key, chunk)
        chunk.arrived_s = now_s
        self.unanswered_count += 1

    def submit_rows(self, rows: Rows, now_s: float) -> None:
        """Takes rows of a message, of distinct sessions and well-formed; each is settled some time.

        Raises:
            ServiceError: None of them is taken.
        """
        assert rows.message is not None, "bug: rows of nobody"
        if self._is_draining:
            raise draining()
        self._queue.push_group(rows.keys, rows)
        rows.message.arrived_s = now_s
        self.unanswered_count += len(rows)

    def drain(self) -> None:
        """Takes no chunks any more."""
        self._is_draining = True

    def stop(self, now_s: float) -> list[Effect]:
        """Refuses what waits for its turn to run; what is under way goes on."""
        self._is_draining = True
        self._failures.stop()
        return self._flush(now_s)

    def refuse_waiting(self, now_s: float) -> list[Effect]:
        """Refuses what was never taken from the queue."""
        while items := self._queue.take(self._limits.max_batch):
            for rows in map(_as_rows, items):
                self._settle(rows, draining())
        return self._flush(now_s)

    def forget(self, key: bytes) -> None:
        """Drops a session from memory, because its record was changed by other means than a chunk."""
        if key in self._queue:
            self._forgotten.add(key)  # once what is under way is answered
        else:
            self.cache.discard(key)

    # -- a batch ------------------------------------------------------------------------------

    def next(self, now_s: float, epoch: int) -> list[Effect]:
        """Takes a batch: rows to run, rows of sessions to load, and those that are answered at once."""
        if epoch != self._epoch:
            self._see(epoch, now_s)
        self._taken = self._queue.take(self._limits.max_batch, joins_batch)
        plan = Plan(self.cache, now_s, self._epoch_seen_s)
        plan.add(self._taken)
        for rows, error in plan.refused:
            self._settle(rows, error)
        for row, verified_s in plan.replays:
            self._replay(row, verified_s)
        if plan.cold:
            keys = plan.missing()
            self._effects.append(Load(plan.cold, keys))
        self._begin(self._failures.batch(plan.ready, now_s))
        self._taken = ()
        return self._flush(now_s)

    def due(self, now_s: float) -> list[Effect]:
        """Lets go on what had to wait until now."""
        return self._flush(now_s)

    # -- load ---------------------------------------------------------------------------------

    def loaded(self, load: Load, records: Sequence[Loaded], epoch: int, now_s: float) -> list[Effect]:
        """The records of a load were read; again if the server changed meanwhile."""
        if epoch != self._epoch:
            self._see(epoch, now_s)
        if load.commit is not None:
            self._conclude(load.commit, unproven(load.commit, records, load.commit.error), load.epoch)
        elif epoch == load.epoch:
            found = heat_alike(self.cache, self._models, load.keys, records, load.began_s)
            for rows in load.rows:
                self._take_in(rows, found, load.began_s)
        elif load.attempt + 1 < MAX_READS:
            self._effects.append(Load(load.rows, load.keys, load.attempt + 1))
        else:
            error = StoreUnavailable("the store's servers keep changing", retry_after_s=0.1)
            return self.unread(load, error, now_s)
        return self._flush(now_s)

    def unread(self, load: Load, error: ServiceError, now_s: float) -> list[Effect]:
        """The store did not answer."""
        if load.commit is not None:
            self._conclude(load.commit, unproven(load.commit, None, load.commit.error), load.epoch)
        for rows in load.rows:
            self._settle(rows, error)
        return self._flush(now_s)

    def _take_in(self, rows: Rows, found: Mapping[bytes, Loaded], verified_s: float) -> None:
        """Makes sessions hot from what the store holds, and lets their chunks be decided again."""
        heated = heat(self.cache, self._models, rows, found, verified_s)
        for row, error in heated.answered:
            if error is None:
                self._replay(row, verified_s)
            else:
                self._settle(row, error)
        if len(heated.rows):
            self._again.append(heated.rows)

    def _replay(self, row: Rows, verified_s: float) -> None:
        """Answers a row by a reply kept in a record that was read at `verified_s`."""
        self._confirm(row, self._epoch if verified_s >= self._epoch_seen_s else PAST_EPOCH)

    # -- run ----------------------------------------------------------------------------------

    def _begin(self, runs: list[Run]) -> None:
        """Has rows run; they are noted before anything can break, so that `broke` finds them."""
        self._effects += runs
        for run in runs:
            for group in run.groups:
                for rows in group:
                    self.cache.gather(rows)

    def ran(self, run: Run, failures: Sequence[Failure | None], now_s: float) -> list[Effect]:
        """Rows have run, group by group, or have failed."""
        done: list[Rows] = []
        for group, failure in zip(run.groups, failures, strict=True):
            if failure is None:
                self._failures.ran(run, group, now_s)
                done += group
            elif (refused := self._failures.failed(run, group, failure, now_s)) is not None:
                self._refuse(refused)
        parts: list[Rows] = []
        for rows in done:
            fit, unfit = fit_rows(rows, self.cache.tail)
            parts += fit
            for place, error in unfit:
                self._settle(rows.one(place), error)
        if parts:
            self._to_commit.append(Commit(parts))
        return self._flush(now_s)

    def _refuse(self, refused: Refused) -> None:
        """Refuses rows that do not run; has sessions quarantined that fail for ever."""
        if refused.is_incorrigible:
            self._effects.append(Quarantine(refused.rows, refused.error))
        else:
            self._settle(refused.rows, refused.error)

    def quarantined(self, effect: Quarantine, refusal: ServiceError | None, now_s: float) -> list[Effect]:
        """A session is in quarantine, with the refusal of its chunks; or without one it is not."""
        [key] = effect.rows.keys
        if refusal is not None:
            self._failures.quarantined(key)
        self.cache.discard(key)
        self._settle(effect.rows, refusal or effect.error)
        return self._flush(now_s)

    # -- commit and answer --------------------------------------------------------------------

    def committed(self, commit: Commit, refusals: Refusals, epoch: int, now_s: float) -> list[Effect]:
        """Records are stored, but for those that were refused."""
        if epoch != self._epoch:
            self._see(epoch, now_s)
        self._conclude(commit, refusals, commit.epoch)
        return self._flush(now_s)

    def lost(self, commit: Commit, error: StoreUnavailable, now_s: float) -> list[Effect]:
        """Whether records are stored is not known: they are read back, and no other commit begins."""
        commit.error = error
        self._effects.append(Load([], [key for rows in commit.rows for key in rows.keys], commit=commit))
        return self._flush(now_s)

    def _conclude(self, commit: Commit, refusals: Refusals, epoch: int) -> None:
        """Answers the rows of a commit; what is not refused is known to be stored in this epoch."""
        if self._committing is commit:
            self._committing = None
        stored, refused = outcomes(commit, refusals) if refusals else (commit.rows, [])
        for rows in stored:
            self.cache.keep(rows, commit.began_s)
            rows.is_replayed = False
            self._confirm(rows, epoch)
        for row, refusal in refused:
            self._conflict(row, refusal, commit.began_s)

    def _conflict(self, row: Rows, refusal: Found | ServiceError, verified_s: float) -> None:
        """Decides again where another writer came first, on what is stored now; else refuses the row."""
        [key], ttl_s = row.keys, self._limits.session_ttl_s
        row = row.anew(np.array([0]))
        row.conflict_count += 1
        if isinstance(refusal, Found):
            if row.conflict_count > MAX_CONFLICTS:
                refusal = PositionConflict("other writers keep coming first")
            elif refusal.record is None and 0 < ttl_s <= self.cache.age_s(key, verified_s):
                refusal = expired(ttl_s)
            else:
                self._take_in(row, {key: refusal.record}, verified_s)
                return
        self.cache.discard(key)
        self._settle(row, refusal)

    def _confirm(self, rows: Rows, epoch: int) -> None:
        """Answers rows that are committed or replayed, above level memory once that is confirmed."""
        level = rows.asked.ack_level
        rows.ack_level = self._limits.ack_level if level is None else level
        if rows.ack_level:
            self._effects.append(Confirm(rows, epoch))
        else:
            self._settle(rows)

    def confirmed(self, confirm: Confirm, refusals: Refusals, now_s: float) -> list[Effect]:
        """Rows are as durable as was asked for, but for those that were refused."""
        rows = confirm.rows
        if refusals:
            rows = rows.take(rows.others(refusals))
        if len(rows):
            self._settle(rows)
        for place, refusal in refusals.items():
            assert isinstance(refusal, ServiceError), "bug: a confirmation found another record"
            self._settle(confirm.rows.one(place), refusal, is_applied=True)
        return self._flush(now_s)

    # -- ends ---------------------------------------------------------------------------------

    def broke(self, effect: Effect | None, now_s: float) -> list[Effect]:
        """A stage, or `next` itself, failed in a way nobody foresaw: what it was about is answered."""
        broken = [] if effect is None else [effect]
        broken += [asked for asked in self._effects if not isinstance(asked, Settle)]
        self._effects = [asked for asked in self._effects if isinstance(asked, Settle)]
        about = [*map(_as_rows, self._taken), *self._again]
        self._taken, self._again = (), []
        for one in broken:
            about += rows_of(one)
            if isinstance(one, Run):
                about += self._failures.broke(one)
            commit = one.commit if isinstance(one, Load) else one
            if commit is self._committing:
                self._committing = None
        for rows in about:
            left = rows.anew(rows.unanswered())
            for key in left.keys:
                self.cache.discard(key)
            if len(left):
                self._settle(left, InternalFailure("the server failed on this chunk"))
        return self._flush(now_s)

    def _settle(self, rows: Rows, error: ServiceError | None = None, *, is_applied: bool = False) -> None:
        """Answers rows that were taken from the queue, and lets the next chunks of their sessions go."""
        rows.mark_answered()
        self._effects.append(Settle(rows, error, is_applied))
        self.unanswered_count -= len(rows.keys)
        self._queue.release(rows.keys)
        if self._forgotten:
            for key in self._forgotten.intersection(rows.keys):
                if key not in self._queue:
                    self._forgotten.remove(key)
                    self.cache.discard(key)

    def _flush(self, now_s: float) -> list[Effect]:
        """Returns what is to be done: what came up, and what may begin by now."""
        for rows in self._again:
            if rows.chunks is None or len(rows) == 1:
                self._queue.put_back(rows, len(rows))
                continue
            for chunk in rows.chunks:  # so that they join those that come meanwhile
                self._queue.put_back(chunk, 1)
        self._again.clear()
        self.due_s = None
        if self._failures.job_count:
            runs, refused = self._failures.begin(now_s)
            for one in refused:
                self._refuse(one)
            self._begin(runs)
            self.due_s = self._failures.due_s
        if self._to_commit and self._committing is None:
            self._committing = self._to_commit.popleft()
            self._effects.append(self._committing)
        effects, self._effects = self._effects, []
        return effects

    def _see(self, epoch: int, now_s: float) -> None:
        """Notes since when the store's connection has been one and the same."""
        self._epoch, self._epoch_seen_s = epoch, now_s


def _as_rows(item: Chunk | Rows) -> Rows:
    return item if isinstance(item, Rows) else join([item])
