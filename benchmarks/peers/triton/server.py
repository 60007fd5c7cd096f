"""Triton as a process: a model repository, a port, and what to say when it dies."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.peers.triton.environment import PACKAGES, PYTHON_VERSION, VENV, TritonUnavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

_HERE = Path(__file__).parent
_BUNDLE = PACKAGES / "pytriton" / "tritonserver"
_STARTED = "Started GRPCInferenceService"

_FLAGS = (
    "--allow-http=false",
    "--allow-metrics=false",
    # With a pool of 8 calls, the default, this build crashed in 4 of 12 runs of 64 streams; so in 1 of 18.
    "--grpc-infer-allocation-pool-size=2048",
)


class TritonServer:
    """Starts Triton when it is asked for, again after a crash, and stops it.

    Args:
        folder: Made here: model repository, backend and log.
        model: The ONNX file.
        missing: Why it cannot run at all; "" if it can.

    Attributes:
        address: HOST:PORT of gRPC.
        pid: Its process; what that has started counts as well.
    """

    def __init__(self, folder: Path, model: Path, missing: str) -> None:
        self._missing = missing
        self._folder = folder
        self._model = model
        self._log = folder / "triton.log"
        self._shared_memory = f"holdfast-bench-{os.getpid()}-"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.pid = 0

    def __enter__(self) -> Self:
        """Returns itself, not started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        if self._process is not None:
            self._process.terminate()
            self._end(self._process)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not been seen to die."""
        return self._process is not None

    def ensure_running(self) -> None:
        """Starts it if it does not run.

        Raises:
            TritonUnavailable: It cannot run, or does not start.
        """
        if self._missing:
            raise TritonUnavailable(self._missing)
        if self._process is None:
            self._start()

    def note_crash(self) -> str | None:
        """Tells how it ended, if it has; the next `ensure_running` starts it again."""
        process = self._process
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)  # its connections break before it is gone
        if process.poll() is None:
            return None
        self._end(process)
        return self._reason(process)

    def _start(self) -> None:
        self._lay_out()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [str(_BUNDLE / "bin" / "tritonserver"), *_FLAGS]
        command += [f"--model-repository={self._folder / 'models'}"]
        command += [f"--backend-directory={self._folder / 'backends'}"]
        command += [f"--backend-config=python,shm-region-prefix-name={self._shared_memory}"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={port}"]
        environment = {
            **os.environ,
            "VIRTUAL_ENV": str(VENV),
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        self._wait_until_started(self._process)

    def _lay_out(self) -> None:
        """Puts the model, and the backend with the stub of this Python, where Triton looks for them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        model = self._folder / "models" / "gru"
        (model / "1").mkdir(parents=True)
        shutil.copy(_HERE / "config.pbtxt", model)
        shutil.copy(_HERE / "model.py", model / "1")
        shutil.copy(self._model, model / "1" / "step_graph.onnx")
        stub = _BUNDLE / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
        if not stub.exists():
            raise TritonUnavailable(
                f"its wheel has no backend for Python {PYTHON_VERSION} on {sys.platform}"
            )
        shutil.copytree(_BUNDLE / "backends", self._folder / "backends")
        shutil.copy(stub, self._folder / "backends" / "python")

    def _wait_until_started(self, process: "subprocess.Popen[bytes]") -> None:
        until_s = time.monotonic() + START_TIMEOUT_S
        while _STARTED not in self._log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until_s:
                process.kill()
                self._end(process)
                self._missing = f"it does not start: {self._reason(process)}"
                raise TritonUnavailable(self._missing)
            time.sleep(0.1)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the stub outlives a crash
        process.wait()
        for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):  # noqa: S108 -- Triton leaves it there
            left.unlink(missing_ok=True)
        self._process = None

    def _reason(self, process: "subprocess.Popen[bytes]") -> str:
        if process.returncode < 0:
            return f"it died of {signal.Signals(-process.returncode).name}"
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("E", "tritonserver:", "error"))]
        said = " ".join((errors or lines)[:1]).replace(f"{_BUNDLE}/", "")
        return f"it ended with code {process.returncode}: {said[:200]}"
