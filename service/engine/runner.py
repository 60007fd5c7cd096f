"""Runs batches: short ones where they are, long ones in a thread, so that the event loop goes on meanwhile.

onnxruntime and large numpy operations run without the interpreter's lock, so the thread has its own core.
But what a batch reads and writes then moves between two cores' caches, which costs more than a short run
takes; what a model takes per step is learnt. A run that does not end is ended by the watchdog: soon, where
it holds up the event loop, since it can run once more in a thread; else after the time limit.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.batch import EncodeOutputs, Ran, Steps, run_batch
from service.engine.watchdog import Watchdog
from service.errors import ModelFailed
from service.model.protocol import Model

THREAD_PAYS_S = 3e-3
"""A batch that takes longer runs in the thread, so that nobody else waits for so long."""

LOOP_LIMIT_S = 0.5
"""A run on the event loop's thread is ended after this, far beyond `THREAD_PAYS_S`: all else waits."""

APART_COUNT = 4
"""So many runs apart at once: one that stalls leaves room for others."""

_NEW_SHARE = 0.2
"""Weight of the latest batch in what is known of a model's speed."""

States = Sequence[NDArray[np.uint8]]


class Fault(Enum):
    """How a run failed."""

    RAISED = "raised"
    STALLED = "stalled"
    """It took the whole time limit."""
    HELD_UP_LOOP = "held up the loop"
    """It was ended early, on the event loop's thread; it may do better apart."""


class Failure(NamedTuple):
    """Why a run gave nothing."""

    error: ModelFailed
    fault: Fault


class Runner:
    """Runs one batch at a time, and a few more apart.

    Args:
        encode_outputs: Encodes what chunks gave.
        timeout_s: Time limit of a run.
    """

    def __init__(self, encode_outputs: EncodeOutputs, timeout_s: float) -> None:
        self._encode_outputs = encode_outputs
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._apart = ThreadPoolExecutor(APART_COUNT, thread_name_prefix="model apart")
        self._watchdog = Watchdog()
        self._step_s: dict[bytes, float] = {}

    async def run(self, model: Model, group: Sequence[Steps], states: States) -> list[Ran] | Failure:
        """Runs blocks of one model; see `run_batch`.

        Returns:
            What each of them gave, or why the model failed.
        """
        step_count = _step_count(group)
        if step_count * self._step_s.get(model.fingerprint, 0.0) < THREAD_PAYS_S:
            limit_s = min(LOOP_LIMIT_S, self._timeout_s)
            return self._run(model, group, states, step_count, limit_s, Fault.HELD_UP_LOOP)
        return await self._run_in(self._thread, model, group, states)

    async def run_apart(self, model: Model, group: Sequence[Steps], states: States) -> list[Ran] | Failure:
        """Runs blocks like `run`, but in a thread of its own, beside other runs."""
        return await self._run_in(self._apart, model, group, states)

    def close(self) -> None:
        """Ends the threads."""
        self._thread.shutdown()
        self._apart.shutdown()
        self._watchdog.close()

    async def _run_in(
        self, threads: ThreadPoolExecutor, model: Model, group: Sequence[Steps], states: States
    ) -> list[Ran] | Failure:
        arguments = (model, group, states, _step_count(group), self._timeout_s, Fault.STALLED)
        return await asyncio.get_running_loop().run_in_executor(threads, self._run, *arguments)

    def _run(
        self,
        model: Model,
        group: Sequence[Steps],
        states: States,
        step_count: int,
        limit_s: float,
        fault: Fault,
    ) -> list[Ran] | Failure:
        """Runs blocks; `fault` is what it is called if the watchdog ends it."""
        halt = model.new_halt()
        watched = self._watchdog.begin(halt, limit_s)
        started_s = time.perf_counter()
        try:
            ran = run_batch(model, group, states, self._encode_outputs, halt)
        except ModelFailed as error:
            if not watched.was_halted:
                return Failure(error, Fault.RAISED)
            name = f"model {model.name} version {model.version}"
            return Failure(ModelFailed(f"{name} did not end within {limit_s:g} s and was ended"), fault)
        finally:
            self._watchdog.end(watched)
        step_s = (time.perf_counter() - started_s) / step_count
        known_s = self._step_s.get(model.fingerprint, step_s)
        self._step_s[model.fingerprint] = known_s + _NEW_SHARE * (step_s - known_s)
        return ran


def _step_count(group: Sequence[Steps]) -> int:
    return sum(len(steps.block) * steps.block.asked.token_count for steps in group)
