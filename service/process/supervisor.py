"""Keeps N workers serving one port, and answers for all of them.

The workers listen on the port by SO_REUSEPORT, so the kernel spreads connections over those that live, and
nothing here is in the way of a request. A worker that ends is replaced.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from service.common.background import Trouble, keep_going
from service.common.listen_address import ListenAddress
from service.common.ports import bind_error, hold_port
from service.common.start_errors import StartError
from service.model.apart import parse_apart
from service.model.check import check_folder
from service.model.files import ModelFileError
from service.process.worker_process import WorkerProcess
from service.settings.schema import Settings
from service.telemetry import logs
from service.telemetry.metrics import STALLED_AFTER_S, Metrics, scrape_together

_log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25

LOOK_S = 2.0
"""Between looks at what the process uses."""

RESTART_PAUSES_S = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Before a worker is started again, by how many ended early in a row; the last one repeats."""

EARLY_S = 10.0
"""A worker that ends within so long after its start has ended early."""


STUCK_LOOKS = 8
"""A worker counts as stuck when it was found so at so many beats of the supervisor in a row: so a machine
that stood still as a whole gives its workers two seconds to go on."""


class Supervisor:
    """Serves gRPC in `settings.workers` processes.

    Attributes:
        grpc_port: Port of gRPC.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: set[WorkerProcess] = set()
        self._own = Metrics()  # what is counted here, and what workers that are gone had counted
        self._scraped = Metrics()
        self._lock = threading.Lock()  # a scrape, in its thread, finds a worker's numbers in one place
        self._stuck_looks: dict[WorkerProcess, int] = {}
        self._hearts: list[asyncio.Task[None]] = []
        self._replacing: list[asyncio.Task[None]] = []
        self._is_draining = False
        self.grpc_port = 0

    async def start(self, store_url: str) -> None:
        """Starts the workers and waits until all of them serve.

        Raises:
            StartError: A model is refused, the port cannot be used, or a worker cannot start.
        """
        self._checked = await self._check_models()
        address = ListenAddress.parse(self._settings.grpc_address)
        try:
            self._port_holder = hold_port(address)
        except OSError as error:
            raise bind_error("--grpc-address", self._settings.grpc_address, error) from None
        self.grpc_port = self._port_holder.getsockname()[1]
        changes = {
            "grpc_address": str(address.at(self.grpc_port)),
            "store": store_url,
            "allow_old_store": self._settings.trusts_store_version,
        }
        self._worker_settings = self._settings.model_copy(update=changes)
        self._own.beat()
        self._hearts = [
            asyncio.create_task(keep_going("heartbeat", self._beat)),
            asyncio.create_task(keep_going("process_usage", self._look_at_process)),
        ]
        starting = [asyncio.create_task(self._start_worker()) for _ in range(self._settings.workers)]
        try:
            workers = await asyncio.gather(*starting)
        except (StartError, asyncio.CancelledError):
            await _cancel(starting)
            await self.stop()
            raise
        self._replacing = [asyncio.create_task(self._replace(worker)) for worker in workers]

    async def stop(self) -> None:
        """Drains all workers at once and waits until they are gone."""
        self._is_draining = True
        await _cancel(self._replacing)
        limit_s = self._settings.drain_timeout_s
        await asyncio.gather(*(worker.stop(limit_s) for worker in self._workers))
        await _cancel(self._hearts)
        self._port_holder.close()

    def scrape(self) -> bytes:
        """Returns the metrics of all workers, those that are gone included, in the text format."""
        with self._lock:
            return scrape_together(self._own, [worker.metrics for worker in self._workers], self._scraped)

    def why_not_live(self) -> str | None:
        """Returns which event loop is stuck, if one is: that of this process or of a worker."""
        loops = [("the supervisor", self._own)] if self._hearts else []
        loops += [(f"worker {worker.pid}", worker.metrics) for worker in self._serving()]
        for name, metrics in loops:
            silent_s = metrics.silent_s()
            if silent_s > STALLED_AFTER_S:
                return f"{name}: the event loop has not turned for {silent_s:.0f} s"
        return None

    def why_not_ready(self) -> str | None:
        """Returns why requests should go elsewhere.

        One worker that can answer is enough: the kernel gives connections only to those that listen.
        """
        if self._is_draining:
            return "draining"
        serving = self._serving()
        if not serving:
            return "no worker serves"
        if not any(worker.metrics.store_up.value for worker in serving):
            return "the store does not answer"
        if not any(worker.metrics.store_safe.value for worker in serving):
            return "the store may lose sessions; the log says why"
        return None

    def _serving(self) -> list[WorkerProcess]:
        with self._lock:
            return [worker for worker in self._workers if worker.metrics.workers.value]

    async def _check_models(self) -> frozenset[bytes]:
        """Checks the models once for all workers; a file that has changed since a worker checks again."""
        settings = self._settings
        try:
            return await asyncio.to_thread(
                check_folder,
                settings.models,
                settings.max_model_bytes,
                parse_apart(settings.apart),
                skips_refused=not settings.strict_models,
            )
        except ModelFileError as error:
            raise StartError(f"--models {error}") from None

    async def _start_worker(self) -> WorkerProcess:
        worker = await WorkerProcess.launch(self._worker_settings, self._checked)
        with self._lock:
            self._workers.add(worker)
        try:
            await worker.serves()
        except Exception:
            worker.kill()  # unless it has ended
            self._fold(worker)
            raise
        _log.info("worker %d serves", worker.pid)
        return worker

    async def _replace(self, worker: WorkerProcess) -> None:
        """Starts another worker whenever the one in this place has ended."""
        early_count = 0
        while True:
            started_s = time.monotonic()
            ending = await worker.ended()
            self._fold(worker)
            _log.warning("worker %d ended with %s; another one is started", worker.pid, ending)
            early_count = early_count + 1 if time.monotonic() - started_s < EARLY_S else 0
            worker = await self._start_another(early_count)

    async def _start_another(self, early_count: int) -> WorkerProcess:
        trouble = Trouble("workers")
        while True:
            await asyncio.sleep(RESTART_PAUSES_S[min(early_count, len(RESTART_PAUSES_S) - 1)])
            self._own.restarts.inc(1)
            with trouble:
                try:
                    return await self._start_worker()
                except StartError as error:
                    _log.error("a worker did not start: %s", error)
            early_count += 1

    def _fold(self, worker: WorkerProcess) -> None:
        """Keeps what a worker that is gone had counted."""
        with self._lock:
            self._workers.remove(worker)
            self._own.absorb(worker.metrics)

    async def _beat(self) -> None:
        self._own.beat()
        self._kill_stuck()
        for worker in self._serving():
            worker.set_verbose(logs.is_verbose())
        await asyncio.sleep(HEARTBEAT_S)

    async def _look_at_process(self) -> None:
        self._own.look_at_process()  # takes descriptors, of which there may be none
        await asyncio.sleep(LOOK_S)

    def _kill_stuck(self) -> None:
        """Kills workers whose event loop stands still; each is then replaced like any that has ended."""
        limit_s = self._settings.stuck_worker_s
        stuck = [worker for worker in self._serving() if limit_s and worker.metrics.silent_s() > limit_s]
        self._stuck_looks = {worker: self._stuck_looks.get(worker, 0) + 1 for worker in stuck}
        for worker, looks in self._stuck_looks.items():
            if looks >= STUCK_LOOKS:
                _log.error("worker %d: its event loop stands still; it is killed", worker.pid)
                worker.kill()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
