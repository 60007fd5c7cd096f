"""Who takes part: servers with the CPU time of their processes, and onnxruntime alone."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from service.demo.processes import ServerProcess
from service.store.embedded import EmbeddedStore

MODEL_FILE = Path(__file__).parent.parent / "models" / "python-source" / "1" / "model.onnx"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Returns the CPU seconds a process has used, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_memory_bytes(pid: int) -> int:
    """Returns the largest resident size a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Contestant:
    """A server under load.

    Attributes:
        name: In the report.
        address: HOST:PORT of gRPC.
        server_pid: Its process.
        store_pid: Process of its store; None without one.
    """

    def __init__(self, name: str, address: str, server_pid: int, store_pid: int | None) -> None:
        self.name = name
        self.address = address
        self.server_pid = server_pid
        self.store_pid = store_pid

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of server and store so far."""
        return cpu_s(self.server_pid), cpu_s(self.store_pid) if self.store_pid is not None else 0.0


class Field:
    """Starts all servers and ends them. Holdfast and `plain` share one store, and take turns with it.

    Args:
        folder: For the store and the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Returns itself, servers ready."""
        with self._stack as stack:
            store = EmbeddedStore.start(self._folder / "store")
            stack.callback(store.release)
            server = stack.enter_context(ServerProcess(self._folder / "server", "--store", store.url))
            self.holdfast = Contestant("holdfast", server.address, server.pid, store.pid)
            self.echo = self._start(stack, "echo", None, "benchmarks.echo_server")
            self.plain = self._start(
                stack, "plain", store.pid, "benchmarks.peers.plain", str(MODEL_FILE), store.url
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends every process."""
        self._stack.close()

    def _start(self, stack: ExitStack, name: str, store_pid: int | None, *module: str) -> Contestant:
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        assert process.stdout is not None
        address = process.stdout.readline().split("grpc=")[1].split()[0]
        return Contestant(name, address, process.pid, store_pid)
