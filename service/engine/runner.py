"""Runs batches: short ones where they are, long ones in a thread, so that the event loop goes on meanwhile.

onnxruntime and large numpy operations run without the interpreter's lock, so the thread has its own core.
But what a batch reads and writes then moves between two cores' caches, which costs more than a short run
takes; what a model takes per step is learnt. A run that does not end is ended by the watchdog: early where
others wait for it, since its rows can run again apart; there, after the time limit.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.batch import EncodeOutputs, Ran, Steps, run_batch
from service.engine.watchdog import Watchdog
from service.errors import ModelFailed
from service.model.protocol import Model

THREAD_PAYS_S = 3e-3
"""A batch that takes longer runs in the thread, so that nobody else waits for so long."""

PATIENCE = 20
PATIENCE_S = 0.5
"""Others wait for a run so many times as long as it should take, and at least this."""

DISTRUST_COUNT = 100
"""So many runs of a model that has held up the event loop are in the thread, however short they seem."""

APART_COUNT = 4
"""So many runs apart at once: one that stalls leaves room for others."""

_NEW_SHARE = 0.2
"""Weight of the latest batch in what is known of a model's speed."""

States = Sequence[NDArray[np.uint8]]


class Failure(NamedTuple):
    """Why a run gave nothing.

    Attributes:
        error: See there.
        was_halted: It took too long; else it raised.
    """

    error: ModelFailed
    was_halted: bool


class Runner:
    """Runs one batch at a time, and a few more apart.

    Args:
        encode_outputs: Encodes what chunks gave.
        timeout_s: Time limit of a run apart, and of any other at most.
    """

    def __init__(self, encode_outputs: EncodeOutputs, timeout_s: float) -> None:
        self._encode_outputs = encode_outputs
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._apart = ThreadPoolExecutor(APART_COUNT, thread_name_prefix="model apart")
        self._watchdog = Watchdog()
        self._step_s: dict[bytes, float] = {}
        self._distrusted: dict[bytes, int] = {}

    async def run(self, model: Model, group: Sequence[Steps], states: States) -> list[Ran] | Failure:
        """Runs blocks of one model; see `run_batch`.

        Returns:
            What each of them gave, or why the model failed.
        """
        step_count = _step_count(group)
        expected_s = step_count * self._step_s.get(model.fingerprint, 0.0)
        limit_s = min(self._timeout_s, max(PATIENCE_S, PATIENCE * expected_s))
        if self._distrusted and self._distrusts(model.fingerprint):
            return await self._run_in(self._thread, model, group, states, step_count, limit_s)
        if expected_s >= THREAD_PAYS_S:
            return await self._run_in(self._thread, model, group, states, step_count, limit_s)
        result = self._run(model, group, states, step_count, limit_s)
        if isinstance(result, Failure) and result.was_halted:
            self._distrusted[model.fingerprint] = DISTRUST_COUNT
        return result

    async def run_apart(self, model: Model, group: Sequence[Steps], states: States) -> list[Ran] | Failure:
        """Runs blocks like `run`, but in a thread of its own, beside other runs."""
        return await self._run_in(self._apart, model, group, states, _step_count(group), self._timeout_s)

    def close(self) -> None:
        """Ends runs under way, then the threads."""
        self._watchdog.close()
        self._thread.shutdown(cancel_futures=True)
        self._apart.shutdown(cancel_futures=True)

    def _distrusts(self, fingerprint: bytes) -> bool:
        left_count = self._distrusted.pop(fingerprint, 0)
        if left_count > 1:
            self._distrusted[fingerprint] = left_count - 1
        return left_count > 0

    async def _run_in(self, threads: ThreadPoolExecutor, *arguments: Any) -> list[Ran] | Failure:
        return await asyncio.get_running_loop().run_in_executor(threads, self._run, *arguments)

    def _run(
        self, model: Model, group: Sequence[Steps], states: States, step_count: int, limit_s: float
    ) -> list[Ran] | Failure:
        halt = model.new_halt()
        watched = self._watchdog.begin(halt, limit_s)
        started_s = time.perf_counter()
        try:
            ran = run_batch(model, group, states, self._encode_outputs, halt)
        except ModelFailed as error:
            if not watched.was_halted:
                return Failure(error, was_halted=False)
            name = f"model {model.name} version {model.version}"
            late = ModelFailed(f"{name} did not end within {limit_s:g} s and was ended")
            return Failure(late, was_halted=True)
        finally:
            self._watchdog.end(watched)
        step_s = (time.perf_counter() - started_s) / step_count
        known_s = self._step_s.get(model.fingerprint, step_s)
        self._step_s[model.fingerprint] = known_s + _NEW_SHARE * (step_s - known_s)
        return ran


def _step_count(group: Sequence[Steps]) -> int:
    return sum(len(steps.block) * steps.block.asked.token_count for steps in group)
