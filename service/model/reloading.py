"""Loads the models that appear in the folder while it is served; what is served already stays as it is.

A look lists the folder and tries what is new and has come to rest: it is read, checked in a process of its
own, loaded, and added. All of that is done in threads; on the event loop it is one assignment. Nothing a
file does reaches those who are served: it becomes a refusal, which goes when the file is mended or gone.

Loaded is not newest yet. Other workers and replicas that look at the same folder may not have it, and would
refuse a session that was opened here on it; so it is served at once to those who name it, and to those who
name no version when the others have had the time.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from service.common.background import Trouble
from service.common.shortage import is_passing
from service.model.apart import Apart
from service.model.check import check_model
from service.model.contract import Contract
from service.model.files import (
    ModelFile,
    ModelFileError,
    PackageMissingError,
    Stamps,
    fingerprint_of,
    list_files,
    read_model,
    stamps_of,
)
from service.model.loading import load_model
from service.model.looks import Looks
from service.model.providers import Providers
from service.model.repository import ModelRepository
from service.model.step_graph import ON_CPU

_log = logging.getLogger(__name__)

RELOAD_PAUSE_S = 0.5
"""Between the two looks of a reload that is asked for; above `looks.SETTLE_S`."""

MAX_TOLD = 100
"""Files whose reasons a reload tells; a path has up to 4 KiB."""

SPREAD_PERIODS = 3
"""So many periods after it was loaded here, a file is served wherever somebody looks at the folder: one in
which it is seen, one in which it rests, one for its check."""

_Result = TypeVar("_Result")


class ModelObserver(Protocol):
    """Counts what becomes of files."""

    def loaded(self) -> None:
        """Counts a model that was loaded while serving."""

    def refused(self) -> None:
        """Counts a refusal of a file, once for each change of it."""

    def stand_refused(self, count: int) -> None:
        """Notes how many files of the folder cannot be served at present."""


class ModelReloading:
    """Looks at the folder, again and again or when asked.

    Args:
        folder: Where the models lie.
        models: Gets what is loaded.
        max_bytes: Largest file.
        why_not: Says why a contract cannot be served by this process; None if it can.
        observer: Counts.
        refresh_s: Between two looks; 0: there are only those that are asked for.
        is_alone: No other process serves the same port.
        apart: What of a model's batches runs apart, see `ModelRepository`.
        providers: What runs the models.
    """

    def __init__(
        self,
        folder: Path,
        models: ModelRepository,
        *,
        max_bytes: int,
        why_not: Callable[[Contract], str | None],
        observer: ModelObserver,
        refresh_s: float,
        is_alone: bool,
        apart: Apart = MappingProxyType({}),
        providers: Providers = ON_CPU,
    ) -> None:
        self._folder = folder
        self._models = models
        self._max_bytes = max_bytes
        self._why_not = why_not
        self._observer = observer
        self._refresh_s = refresh_s
        self._is_alone = is_alone
        self._apart = apart
        self._providers = providers
        self._looks = Looks()
        self._misnamed: dict[Path, ModelFileError] = {}
        self._refused: dict[ModelFile, ModelFileError] = {}
        self._trouble = Trouble("models")
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()

    async def watch(self) -> None:
        """Looks once, a period after it was called."""
        await asyncio.sleep(self._refresh_s)
        await self._look()

    async def reload(self) -> list[ModelFileError]:
        """Looks twice, and tries again what was refused; a look goes on when the caller leaves.

        In a server of one process what is loaded is the newest at once.

        Returns:
            Files that are not served, with the reason, sorted by path: so many of them as a reply can have.
        """
        self._looks.forget_tried(self._refused)
        await self._look()
        await asyncio.sleep(RELOAD_PAUSE_S)
        await self._look()
        if self._is_alone:
            self._models.make_all_newest()
        restless = [
            ModelFileError(file.path, "it has just changed; it is tried when it has come to rest")
            for file in self._looks.restless()
            if file not in self._refused
        ]
        refused = sorted(
            [*self._misnamed.values(), *self._refused.values(), *restless], key=lambda error: error.path
        )
        if len(refused) > MAX_TOLD:
            more = ModelFileError(self._folder, f"{len(refused) - MAX_TOLD} further files are not served")
            return [*refused[:MAX_TOLD], more]
        return refused

    async def _look(self) -> None:
        """Looks, one caller after the other."""
        task = asyncio.create_task(self._look_in_turn())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _look_in_turn(self) -> None:
        async with self._turn:
            with self._trouble:
                await self._look_alone()

    async def _look_alone(self) -> None:
        found, misnamed = await _in_thread(self._list)
        self._note_misnamed(misnamed)
        self._refused = {file: error for file, error in self._refused.items() if file in found}
        for file in self._looks.rested(found, time.monotonic()):
            if await self._try(file):
                self._looks.note_tried(file)
        self._observer.stand_refused(len(self._refused) + len(self._misnamed))

    def _list(self) -> tuple[dict[ModelFile, Stamps | None], list[ModelFileError]]:
        files, misnamed = list_files(self._folder)
        return {file: stamps_of(file.path) for file in files}, misnamed

    async def _try(self, file: ModelFile) -> bool:
        """Loads a file or refuses it; returns whether that stands until the file is another."""
        before = self._refused.pop(file, None)
        try:
            await self._load(file)
        except PackageMissingError:
            return True  # it was said at start
        except ModelFileError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 -- whatever it is, others are served
            reason = f"it cannot be loaded now: {type(error).__name__}: {error}"
            refusal = ModelFileError(file.path, reason, is_passing=is_passing(error))
        else:
            return True
        self._refused[file] = refusal
        if not (refusal.is_passing and before is not None and before.reason == refusal.reason):
            self._tell(refusal)
        return not refusal.is_passing

    async def _load(self, file: ModelFile) -> None:
        """Reads, checks, loads and adds one file; one that is served already is only compared."""
        data = await _in_thread(lambda: read_model(file.path, self._max_bytes))
        served = self._models.fingerprint_at(file.name, file.version)
        if served is not None:
            if await _in_thread(lambda: fingerprint_of(data)) != served:
                reason = (
                    f"version {file.version} of {file.name} changed on disk; give it a new version number"
                )
                raise ModelFileError(file.path, reason)
            return
        apart = self._apart.get(file.name, frozenset())
        await _in_thread(lambda: check_model(file.path, data, apart=apart))
        model = await asyncio.to_thread(
            load_model,
            file.path,
            name=file.name,
            version=file.version,
            data=data,
            apart=apart,
            providers=self._providers,
        )
        if (why_not := self._why_not(model.contract)) is not None:
            raise ModelFileError(file.path, why_not)
        self._models.add(model, file.path)
        spread_s = SPREAD_PERIODS * self._refresh_s
        asyncio.get_running_loop().call_later(spread_s, self._models.make_newest, file.name, file.version)
        self._observer.loaded()
        _log.info("model %s version %d is served", file.name, file.version)

    def _note_misnamed(self, misnamed: list[ModelFileError]) -> None:
        before, self._misnamed = self._misnamed, {error.path: error for error in misnamed}
        for error in misnamed:
            if error.path not in before:
                self._tell(error)

    def _tell(self, error: ModelFileError) -> None:
        _log.error("%s; what is served stays as it is", error)
        self._observer.refused()


async def _in_thread(function: Callable[[], _Result]) -> _Result:
    """Calls a function in a thread that nobody waits for when the process ends, however long it takes.

    Loading is not for such a thread: it runs code of onnxruntime, which must not be cut off by the end of
    the interpreter, and after its check it takes no longer than that has.
    """
    outcome: Future[_Result] = Future()
    outcome.set_running_or_notify_cancel()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 -- it is raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=call, name="models", daemon=True).start()
    return await asyncio.wrap_future(outcome)
