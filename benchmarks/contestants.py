"""Who takes part: servers, how they are spoken to, and what their processes cost."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc.aio

from benchmarks.peers.triton.server import TritonServer
from benchmarks.results import ECHO, HOLDFAST, PLAIN
from holdfast.bench.loads import CHANNEL_OPTIONS
from holdfast.demo.processes import ServerProcess
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.process.library_environment import set_library_environment
from service.store.embedded import EmbeddedStore

MODEL_FILE = Path(__file__).parent.parent / "models" / "python-source" / "1" / "model.onnx"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Connect = Callable[[str], AbstractAsyncContextManager[Any]]
"""Given HOST:PORT, gives what the callers of a load call: a stub, or a client."""


@asynccontextmanager
async def by_grpc(address: str) -> AsyncIterator[Any]:
    """Connects as a plain gRPC caller does; gives a stub of Holdfast's service."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


class Contestant(NamedTuple):
    """A server under load, and how the load speaks to it.

    Attributes:
        name: In the report.
        address: HOST:PORT of gRPC.
        pid: Its process; what that has started counts as well.
        store_pid: Process of its store; None without one.
        connect: As the load speaks to it.
    """

    name: str
    address: str
    pid: int
    store_pid: int | None = None
    connect: Connect = by_grpc

    def server_cpu_s(self) -> float:
        """CPU seconds of the server so far."""
        return sum(cpu_s(pid) for pid in family(self.pid))

    def store_cpu_s(self) -> float | None:
        """CPU seconds of the store so far."""
        return None if self.store_pid is None else cpu_s(self.store_pid)

    def peak_memory_mib(self) -> float:
        """Largest resident size of its processes so far, summed."""
        return sum(peak_memory_bytes(pid) for pid in family(self.pid)) / 2**20


def family(pid: int) -> list[int]:
    """Returns a process and its descendants."""
    members = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread may end while it is looked at
            members += (member for child in thread.read_text().split() for member in family(int(child)))
    return members


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


class Field:
    """Starts all servers and ends them. Holdfast and `plain` share one store, and take turns with it.

    Args:
        folder: For the store and the logs.
        triton_missing: Why Triton cannot take part; "" if it can.

    Attributes:
        store: The store.
        holdfast: One worker, spoken to as each load wants it.
        echo: Keeps nothing.
        plain: See `benchmarks.peers.plain`.
        triton: Started by its first turn, which may fail.
    """

    def __init__(self, folder: Path, triton_missing: str) -> None:
        self._folder = folder
        self._triton_missing = triton_missing
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Returns itself, servers ready."""
        with self._stack as stack:
            self.store = EmbeddedStore.start(self._folder / "store")
            stack.callback(self.store.release)
            server = stack.enter_context(ServerProcess(self._folder / HOLDFAST, "--store", self.store.url))
            self.holdfast = Contestant(HOLDFAST, server.address, server.pid, self.store.pid)
            self.echo = self._start(ECHO, "benchmarks.echo_server")
            plain = self._start(PLAIN, "benchmarks.peers.plain", str(MODEL_FILE), self.store.url)
            self.plain = plain._replace(store_pid=self.store.pid)
            self.triton = stack.enter_context(
                TritonServer(self._folder / "triton", MODEL_FILE, self._triton_missing)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends every process."""
        self._stack.close()

    def _start(self, name: str, *module: str) -> Contestant:
        set_library_environment()
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True)
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        address = process.stdout.readline().split("grpc=")[1].split()[0]
        return Contestant(name, address, process.pid)
