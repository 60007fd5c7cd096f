"""A worker as its supervisor holds it: a process, and the memory in which it counts.

The worker is a fresh interpreter (`service.process.worker`), since neither gRPC nor onnxruntime survives a
fork. It gets its settings, the key of marks in logs and the fingerprints of checked models on standard
input, whose end later tells it that the supervisor is gone, and says one line on standard output: that it
serves, or why it cannot.
"""

import asyncio
import logging
import mmap
import os
import sys
from typing import Self

from service.common.process_ending import ending_of
from service.common.start_errors import StartError
from service.settings.schema import Settings
from service.telemetry import logs
from service.telemetry.metrics import SIZE_BYTES, Metrics

_log = logging.getLogger(__name__)

SERVES = "serves"

STOP_MARGIN_S = 5.0
"""What a worker may take beyond its drain before it is killed."""


class WorkerProcess:
    """Made by `launch`.

    Attributes:
        metrics: What it counts, readable after it has ended too.
        pid: Its process id.
    """

    def __init__(self, process: asyncio.subprocess.Process, metrics: Metrics) -> None:
        self._process = process
        self.metrics = metrics
        self.pid = process.pid
        self._is_verbose = False

    @classmethod
    async def launch(cls, settings: Settings, checked: frozenset[bytes]) -> Self:
        """Starts the process.

        Args:
            settings: Its own.
            checked: Fingerprints of model files that it need not check.

        Raises:
            StartError: The system has no room for it.
        """
        try:
            process, metrics = await _launch()
        except OSError as error:
            raise StartError(f"a worker cannot be started: {error}") from None
        assert process.stdin is not None, "bug: a worker without a pipe"
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.write(logs.key().hex().encode() + b"\n")
        process.stdin.write(b" ".join(sorted(one.hex().encode() for one in checked)) + b"\n")
        return cls(process, metrics)

    async def serves(self) -> None:
        """Waits until it serves.

        Raises:
            StartError: It ended instead.
        """
        assert self._process.stdout is not None, "bug: a worker without a pipe"
        line = (await self._process.stdout.readline()).decode().strip()
        if line != SERVES:
            ending = await self.ended()
            raise StartError(line or f"worker {self.pid} ended with {ending} while it started")

    async def ended(self) -> str:
        """Waits until it has ended and returns how: the name of a signal, or its exit code."""
        return ending_of(await self._process.wait())

    def set_verbose(self, is_verbose: bool) -> None:
        """Has it log as this process does; for one that serves, since before it does not obey signals."""
        if is_verbose != self._is_verbose and self._process.returncode is None:
            self._is_verbose = is_verbose
            self._process.send_signal(logs.VERBOSE if is_verbose else logs.USUAL)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self, drain_timeout_s: float) -> None:
        """Lets it drain, and kills it if it takes longer than it may."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(drain_timeout_s + STOP_MARGIN_S):
                await self._process.wait()
        except TimeoutError:
            _log.error("worker %d does not end; it is killed", self.pid)
            self._process.kill()
            await self._process.wait()


async def _launch() -> tuple[asyncio.subprocess.Process, Metrics]:
    numbers = os.memfd_create("holdfast-metrics")
    try:
        os.ftruncate(numbers, SIZE_BYTES)
        metrics = Metrics(mmap.mmap(numbers, SIZE_BYTES))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "service.process.worker", str(numbers)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[numbers],
            start_new_session=True,  # Ctrl-C is for the supervisor
        )
    finally:
        os.close(numbers)
    return process, metrics
