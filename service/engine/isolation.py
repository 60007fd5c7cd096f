"""Runs batches so that what makes a model fail takes nothing else with it.

Nothing is committed before a run has ended, so running again is safe. A batch that raises is halved, and
its halves run, until what raises is alone. Rows of a batch that does not end, and sessions under suspicion,
run *apart*: each alone, in a thread, while other batches go on. See `suspects` for who is under suspicion,
and for the bound on all this.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.batch import Ran, Steps
from service.engine.hot_state import Standing
from service.engine.runner import APART_COUNT, Failure, Runner
from service.engine.suspects import Suspects
from service.engine.work import Work
from service.errors import ModelFailed, ServiceError
from service.model.protocol import Model


class Failed(NamedTuple):
    """Chunks that did not run.

    Attributes:
        steps: The chunks.
        error: Why.
        is_incorrigible: It is one chunk, and its session has failed by itself once too often.
    """

    steps: Steps
    error: ServiceError
    is_incorrigible: bool = False


class Outcome(NamedTuple):
    """What came of a batch.

    Attributes:
        ran: What ran.
        failed: What did not.
        apart: Single rows that are to run apart, see `Isolation.run_apart`.
    """

    ran: list[Ran]
    failed: list[Failed]
    apart: list[Steps]


class Observer(Protocol):
    """Is told what failures cost; counts it."""

    def reran(self) -> None:
        """A part of a batch that failed ran again."""

    def halted(self) -> None:
        """A run was ended because it took too long."""


class Isolation:
    """Runs batches of one model each.

    Args:
        runner: Runs them.
        suspects: Who is under suspicion.
        gather: Copies the raw states of sessions.
        why_not: Tells why a chunk that has waited for its turn is not to run any more; None if it is.
        observer: Counts.
    """

    def __init__(
        self,
        runner: Runner,
        suspects: Suspects,
        gather: Callable[[Standing], NDArray[np.uint8]],
        why_not: Callable[[Work], ServiceError | None],
        observer: Observer,
    ) -> None:
        self._runner = runner
        self._suspects = suspects
        self._gather = gather
        self._why_not = why_not
        self._observer = observer
        self._apart_turn = asyncio.Semaphore(APART_COUNT)

    async def run(self, group: list[Steps]) -> Outcome:
        """Runs a batch without its suspects."""
        outcome = Outcome([], [], [])
        if self._suspects and not self._pause_s(group[0].model):
            group = self._split(group, outcome.apart)
        if group:
            await self._try(group, outcome)
        return outcome

    async def run_apart(self, steps: Steps) -> Ran | Failed:
        """Runs one row, beside other batches, when it is its turn."""
        async with self._apart_turn:
            refusal = self._why_not(steps.block.work(0))
            if refusal is not None:
                return Failed(steps, refusal)
            pause_s = self._pause_s(steps.model)
            if pause_s:
                return Failed(steps, _blame(steps.model, pause_s))
            result = await self._runner.run_apart(steps.model, [steps], [self._gather(steps.standing)])
        if isinstance(result, Failure):
            if result.was_halted:
                self._observer.halted()
            return self._failed_alone(steps, result.error)
        self._suspects.ran(steps.model.fingerprint, steps.block.keys)
        [ran] = result
        return ran

    def _split(self, group: list[Steps], apart: list[Steps]) -> list[Steps]:
        """Moves suspects from blocks to `apart`."""
        together = []
        for steps in group:
            places = self._suspects.places(steps.block.keys)
            apart += _rows(steps, places)
            rest = np.setdiff1d(np.arange(len(steps.block)), places)
            if len(rest):
                together.append(steps.part(rest) if places else steps)
        return together

    async def _try(self, group: list[Steps], outcome: Outcome) -> None:
        """Runs blocks; if that raises, their halves."""
        model = group[0].model
        result = await self._runner.run(model, group, [self._gather(steps.standing) for steps in group])
        if not isinstance(result, Failure):
            for steps in group:
                self._suspects.ran(model.fingerprint, steps.block.keys)
            outcome.ran.extend(result)
        elif result.was_halted:
            self._observer.halted()
            for steps in group:
                outcome.apart.extend(_rows(steps, range(len(steps.block))))
        elif pause_s := self._pause_s(model):
            error = _blame(model, pause_s, result.error)
            outcome.failed.extend(Failed(steps, error) for steps in group)
        elif len(group) == 1 and len(group[0].block) == 1:
            outcome.failed.append(self._failed_alone(group[0], result.error))
        else:
            for half in _halves(group):
                if pause_s := self._pause_s(model):
                    outcome.failed.extend(Failed(steps, _blame(model, pause_s)) for steps in half)
                else:
                    self._observer.reran()
                    await asyncio.sleep(0)  # requests and replies move between runs
                    await self._try(half, outcome)

    def _failed_alone(self, steps: Steps, error: ModelFailed) -> Failed:
        [key] = steps.block.keys
        return Failed(
            steps, error, self._suspects.failed_alone(steps.model.fingerprint, key, time.monotonic())
        )

    def _pause_s(self, model: Model) -> float:
        """Returns for how long nobody looks for the row at fault, since the model is; 0 if it is not."""
        return self._suspects.pause_s(model.fingerprint, time.monotonic())


def _blame(model: Model, pause_s: float, error: ModelFailed | None = None) -> ModelFailed:
    """Returns the refusal of all chunks of a model that is the culprit."""
    message = (
        f"model {model.name} version {model.version} fails for every session, so this one was not tried "
        f"alone; it is looked into again in {pause_s:.2f} s"
    )
    return ModelFailed(f"{message}: {error.message}" if error else message, retry_after_s=pause_s)


def _rows(steps: Steps, places: Sequence[int]) -> list[Steps]:
    return [steps.part(np.array([place])) for place in places]


def _halves(group: Sequence[Steps]) -> tuple[list[Steps], list[Steps]]:
    """Cuts blocks of two rows or more in the middle."""
    first: list[Steps] = []
    second: list[Steps] = []
    room = sum(len(steps.block) for steps in group) // 2
    for steps in group:
        size = len(steps.block)
        if size <= room:
            first.append(steps)
        elif room == 0:
            second.append(steps)
        else:
            first.append(steps.part(np.arange(room)))
            second.append(steps.part(np.arange(room, size)))
        room = max(0, room - size)
    return first, second
