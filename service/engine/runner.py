"""Runs batches: short ones where they are, long ones in a thread, so that the event loop goes on meanwhile.

onnxruntime and large numpy operations run without the interpreter's lock, so the thread has its own core.
But what a batch reads and writes then moves between two cores' caches, which costs more than a short run
takes; what a model takes per step is learnt.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from service.engine.batch import EncodeOutputs, Ran, Steps, run_batch
from service.errors import ServiceError
from service.model.protocol import Model

THREAD_PAYS_S = 3e-3
"""A batch that takes longer runs in the thread, so that nobody else waits for so long."""

_NEW_SHARE = 0.2
"""Weight of the latest batch in what is known of a model's speed."""

States = Sequence[NDArray[np.uint8]]


class Runner:
    """Runs one batch at a time.

    Args:
        encode_outputs: Encodes what chunks gave.
    """

    def __init__(self, encode_outputs: EncodeOutputs) -> None:
        self._encode_outputs = encode_outputs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._step_s: dict[bytes, float] = {}

    async def run(self, model: Model, group: Sequence[Steps], states: States) -> list[Ran] | ServiceError:
        """Runs blocks of one model; see `run_batch`.

        Returns:
            What each of them gave, or why the model failed.
        """
        step_count = sum(len(steps.block) * steps.block.asked.token_count for steps in group)
        if step_count * self._step_s.get(model.fingerprint, 0.0) < THREAD_PAYS_S:
            return self._run(model, group, states, step_count)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, model, group, states, step_count)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def _run(
        self, model: Model, group: Sequence[Steps], states: States, step_count: int
    ) -> list[Ran] | ServiceError:
        started_s = time.perf_counter()
        try:
            return run_batch(model, group, states, self._encode_outputs)
        except ServiceError as error:
            return error
        finally:
            step_s = (time.perf_counter() - started_s) / step_count
            known_s = self._step_s.get(model.fingerprint, step_s)
            self._step_s[model.fingerprint] = known_s + _NEW_SHARE * (step_s - known_s)
