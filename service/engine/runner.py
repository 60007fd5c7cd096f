"""Runs batches: short ones where they are, long ones in a thread, so that the event loop goes on meanwhile.

onnxruntime and large numpy operations run without the interpreter's lock, so the thread has its own core.
But what a batch reads and writes then moves between two cores' caches, which costs more than a short run
takes; what a model takes per step is learnt. A run that does not end is ended by the watchdog: early where
others wait for it, since its rows can run again apart; there, after the time limit.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from holdfast.errors import ModelFailed
from service.common.background import Trouble
from service.common.priority import be_nice
from service.engine.effects import Failure, Kind
from service.engine.failures import BRIEF_COUNT, LONG_COUNT, THREAD_COUNT
from service.engine.probing import probe
from service.engine.rows import Rows
from service.engine.run import Encode, run_batch
from service.model.protocol import Halt, Model

_log = logging.getLogger(__name__)

THREAD_PAYS_S = 3e-3
"""A batch that takes longer runs in the thread, so that nobody else waits for so long."""

PATIENCE = 20
PATIENCE_S = 0.2
NEW_PATIENCE_S = 0.5
"""Others wait for a run so many times as long as it should take, and at least this: the longer of the two
where nobody knows yet how long that is."""

TICK_S = 0.1
"""A round of the watchdog. It counts rounds instead of reading a clock: a process that was stopped, or had
no core, has not looked around either, so its runs are not taken for stalled ones."""

_NEW_SHARE = 0.2
"""Weight of the latest batch in what is known of a model's speed."""


@dataclass(slots=True, eq=False)
class WatchedRun:
    """One run.

    Attributes:
        halt: Ends it.
        ticks_left: Rounds of the watchdog that it may take.
        was_halted: It was told to end.
    """

    halt: Halt
    ticks_left: int
    was_halted: bool = False

    def tick(self) -> None:
        """Counts a round; ends the run if it was one too many."""
        self.ticks_left -= 1
        if self.ticks_left < 0:
            self.end()

    def end(self) -> None:
        """Ends the run."""
        self.was_halted = True
        self.halt.terminate = True


class Watchdog:
    """Watches runs, whichever thread they are in. Starts its thread at once; `close` ends it.

    Attributes:
        runs: Those under way.
    """

    def __init__(self) -> None:
        self.runs: set[WatchedRun] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin(self, halt: Halt, limit_s: float) -> WatchedRun:
        """Watches a run, to a tick, until it is taken out of `runs`."""
        run = WatchedRun(halt, max(1, round(limit_s / TICK_S)))
        self.runs.add(run)
        return run

    def close(self) -> None:
        """Ends the thread and the runs under way."""
        self._closing.set()
        self._thread.join()
        for run in tuple(self.runs):
            run.end()

    def _watch(self) -> None:
        trouble = Trouble("watchdog")
        while not self._closing.wait(TICK_S):
            for run in tuple(self.runs):
                with trouble:
                    run.tick()


class Runner:
    """Runs one batch at a time, and a few more apart.

    Args:
        encode: Encodes what chunks gave.
        timeout_s: Time limit of a run apart, and of any other at most.
    """

    def __init__(self, encode: Encode, timeout_s: float) -> None:
        self._encode = encode
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(THREAD_COUNT, thread_name_prefix="model")
        self._apart = ThreadPoolExecutor(
            BRIEF_COUNT + LONG_COUNT, thread_name_prefix="model apart", initializer=be_nice
        )
        self._watchdog = Watchdog()
        self._step_s: dict[bytes, float] = {}

    async def run(self, group: Sequence[Rows], kind: Kind, *, in_thread: bool) -> Failure | None:
        """Runs rows of one model; see `run_batch`.

        Args:
            group: The rows.
            kind: Those apart have a thread of their own, beside other runs.
            in_thread: Not on the event loop, however short it seems.

        Returns:
            Why the model failed; None if it did not, and what each of them gave is filled in.
        """
        model, step_count = group[0].model, 0
        for rows in group:
            step_count += len(rows.keys) * rows.asked.token_count
        if kind is Kind.LONG:
            return await self._run_in(self._apart, model, group, step_count, self._timeout_s)
        limit_s = self.patience_s(model, step_count)
        if kind is Kind.BRIEF:
            return await self._run_in(self._apart, model, group, step_count, limit_s)
        if in_thread or step_count * self._step_s.get(model.fingerprint, 0.0) >= THREAD_PAYS_S:
            return await self._run_in(self._threads, model, group, step_count, limit_s)
        failure = self._run(model, group, step_count, limit_s)
        return None if failure is None else failure._replace(on_loop=True)

    async def probe(self, model: Model, state: bytes) -> NDArray[Any]:
        """Weighs what follows a state, in a thread beside the batches; see `probe`.

        Raises:
            ModelFailed: The model failed, or took too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._apart, self._probe, model, state)

    def patience_s(self, model: Model, step_count: int) -> float:
        """Returns how long others wait for a run."""
        known_s = self._step_s.get(model.fingerprint)
        if known_s is None:
            return min(self._timeout_s, NEW_PATIENCE_S)
        return min(self._timeout_s, max(PATIENCE_S, PATIENCE * step_count * known_s))

    def close(self) -> None:
        """Ends runs under way, then the threads."""
        self._watchdog.close()
        self._threads.shutdown(cancel_futures=True)
        self._apart.shutdown(cancel_futures=True)

    async def _run_in(self, threads: ThreadPoolExecutor, *arguments: Any) -> Failure | None:
        return await asyncio.get_running_loop().run_in_executor(threads, self._run, *arguments)

    def _run(self, model: Model, group: Sequence[Rows], step_count: int, limit_s: float) -> Failure | None:
        halt = model.new_halt()
        watched = self._watchdog.begin(halt, limit_s)
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        try:
            run_batch(model, group, self._encode, halt)
        except ModelFailed as error:
            if not watched.was_halted:
                return Failure(error, was_halted=False, cpu_s=time.thread_time() - started_cpu_s)
            name = f"model {model.name} version {model.version}"
            late = ModelFailed(f"{name} did not end within {limit_s:g} s and was ended")
            return Failure(late, was_halted=True, cpu_s=time.thread_time() - started_cpu_s)
        except Exception as error:  # noqa: BLE001 -- whatever it is, there are neighbours whom it is not about
            if not isinstance(error, MemoryError):
                _log.exception("bug: what a model gave could not be taken")
            name = f"model {model.name} version {model.version}"
            reason = f"what {name} gave could not be taken: {type(error).__name__}"
            failed = ModelFailed(reason)
            return Failure(failed, was_halted=False, cpu_s=time.thread_time() - started_cpu_s)
        finally:
            self._watchdog.runs.discard(watched)
        step_s = (time.perf_counter() - started_s) / step_count
        known_s = self._step_s.get(model.fingerprint, step_s)
        self._step_s[model.fingerprint] = known_s + _NEW_SHARE * (step_s - known_s)
        return None

    def _probe(self, model: Model, state: bytes) -> NDArray[Any]:
        halt = model.new_halt()
        watched = self._watchdog.begin(halt, self._timeout_s)
        try:
            return probe(model, state, halt)
        except Exception as error:
            name = f"model {model.name} version {model.version}"
            if watched.was_halted:
                raise ModelFailed(
                    f"{name} did not end within {self._timeout_s:g} s and was ended"
                ) from None
            raise ModelFailed(f"{name} failed: {type(error).__name__}: {error}") from error
        finally:
            self._watchdog.runs.discard(watched)
