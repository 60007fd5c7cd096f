"""Runs batches so that what makes a model fail takes nothing else with it.

Nothing is committed before a run has ended, so running again is safe. A batch that raises is halved, and
its halves run, until what raises is alone; a session under suspicion runs alone from the start, apart from
the others, which do not wait for it. A run that does not end is not tried again at once: its sessions are
suspects, and those that are not at fault succeed when they are sent again. See `suspects` for who is one,
and for the bound on all this.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.batch import Ran, Steps
from service.engine.hot_state import Standing
from service.engine.runner import APART_COUNT, Failure, Fault, Runner, States
from service.engine.suspects import Suspects
from service.errors import DeadlinePassed, ModelFailed, ServiceError
from service.model.protocol import Model

RETRY_AFTER_S = 0.05
"""Pause for those who only shared a run with what stalled."""


Run = Callable[[Model, Sequence[Steps], States], Awaitable[list[Ran] | Failure]]


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
        apart: What is to run apart, see `Isolation.run_apart`; each of these on its own.
    """

    ran: list[Ran]
    failed: list[Failed]
    apart: list[list[Steps]]


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
        observer: Counts.
    """

    def __init__(
        self,
        runner: Runner,
        suspects: Suspects,
        gather: Callable[[Standing], NDArray[np.uint8]],
        observer: Observer,
    ) -> None:
        self._runner = runner
        self._suspects = suspects
        self._gather = gather
        self._observer = observer
        self._apart_turn = asyncio.Semaphore(APART_COUNT)

    async def run(self, group: list[Steps]) -> Outcome:
        """Runs a batch without its suspects."""
        outcome = Outcome([], [], [])
        if self._suspects and not self._pause_s(group[0].model):
            group = self._split(group, outcome.apart)
        if group:
            await self._try(group, self._runner.run, outcome)
        return outcome

    async def run_apart(self, group: list[Steps]) -> Outcome:
        """Runs what `run` left out, beside other batches, in its turn."""
        outcome = Outcome([], [], [])
        async with self._apart_turn:
            if _is_late(group):
                outcome.failed.extend(Failed(steps, _late()) for steps in group)
            elif not self._blame(group, outcome):
                await self._try(group, self._runner.run_apart, outcome)
        return outcome

    def _split(self, group: list[Steps], apart: list[list[Steps]]) -> list[Steps]:
        together = []
        for steps in group:
            places = self._suspects.places(steps.block.keys)
            apart += [[steps.part(np.array([place]))] for place in places]
            rest = np.setdiff1d(np.arange(len(steps.block)), places)
            if len(rest):
                together.append(steps.part(rest) if places else steps)
        return together

    async def _try(self, group: list[Steps], run: Run, outcome: Outcome) -> None:
        """Runs blocks; if that raises, their halves."""
        model = group[0].model
        result = await run(model, group, [self._gather(steps.standing) for steps in group])
        if not isinstance(result, Failure):
            for steps in group:
                self._suspects.ran(model.fingerprint, steps.block.keys)
            outcome.ran.extend(result)
            return
        error, fault = result
        if fault is not Fault.RAISED:
            self._observer.halted()
        if fault is Fault.HELD_UP_LOOP:
            outcome.apart.append(group)
        elif self._blame(group, outcome, error):
            return
        elif len(group) == 1 and len(group[0].block) == 1:
            key = group[0].block.keys[0]
            is_incorrigible = self._suspects.failed_alone(model.fingerprint, key, time.monotonic())
            outcome.failed.append(Failed(group[0], error, is_incorrigible))
        elif fault is Fault.STALLED:
            self._suspects.suspect([key for steps in group for key in steps.block.keys])
            _refuse(group, outcome, error.message, RETRY_AFTER_S)
        else:
            for half in _halves(group):
                if not self._blame(half, outcome):
                    self._observer.reran()
                    await self._try(half, run, outcome)

    def _blame(self, group: Sequence[Steps], outcome: Outcome, error: ModelFailed | None = None) -> bool:
        """Refuses chunks if their model is the culprit; returns whether it is."""
        model = group[0].model
        pause_s = self._pause_s(model)
        if pause_s:
            message = (
                f"model {model.name} version {model.version} fails for every session, so this one was not "
                f"tried alone; it is looked into again in {pause_s:.2f} s"
            )
            _refuse(group, outcome, f"{message}: {error.message}" if error else message, pause_s)
        return bool(pause_s)

    def _pause_s(self, model: Model) -> float:
        return self._suspects.pause_s(model.fingerprint, time.monotonic())


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


def _is_late(group: Sequence[Steps]) -> bool:
    """Whether nobody waits for these chunks any more."""
    now_s = time.monotonic()
    works = [work for steps in group for work in steps.block.works()]
    return all(work.is_cancelled or work.deadline_s < now_s for work in works)


def _refuse(group: Sequence[Steps], outcome: Outcome, message: str, retry_after_s: float) -> None:
    for steps in group:
        outcome.failed.append(Failed(steps, ModelFailed(message, retry_after_s=retry_after_s)))


def _late() -> DeadlinePassed:
    return DeadlinePassed("the caller no longer waits; nothing was run")
