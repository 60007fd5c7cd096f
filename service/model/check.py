"""Has a model file loaded and tried by a process of its own before a server loads it; no onnxruntime here.

Whatever the file does to onnxruntime happens there (`service.model.check_process`): a crash, an endless
loop or all the memory end that process, and the start of the server with a reason. The file goes there as
bytes that were read once, and what comes back is one short line.
"""

import contextlib
import functools
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from service.common.process_ending import ending_of
from service.common.shortage import is_passing
from service.model import shipped
from service.model.apart import Apart
from service.model.confinement import ALL
from service.model.files import (
    ModelFile,
    ModelFileError,
    find_files,
    fingerprint_of,
    list_files,
    read_model,
)

PROCESS = "service.model.check_process"
PASSED = b"ok: "
"""How the process begins what it says of a file that passes; what it was confined by comes after it."""

MAX_VERDICT_BYTES = 4096
MAX_REASON_CHARS = 400
_LEAVE_S = 1.0
"""To end, for a process that has said all."""

_KEPT_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "LANG",
    "LC_ALL",
)
"""What an interpreter may need to start; the rest, secrets among it, is not for this process."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Keeps libraries from starting further ones, which would be confined by less."""

_log = logging.getLogger(__name__)
_telling = threading.Lock()

_Result = TypeVar("_Result")


class CheckLimits(NamedTuple):
    """What the process may take.

    Attributes:
        cpu_s: CPU time.
        wall_s: Time.
        memory_bytes: Address space, beside what grows with the file.
        memory_per_byte: The latter; a graph is held as file, as message, as tensors and packed for speed.
    """

    cpu_s: int = 60
    wall_s: float = 120.0
    memory_bytes: int = 1 << 30
    memory_per_byte: int = 6


LIMITS = CheckLimits()


def check_model(
    path: Path, data: bytes, limits: CheckLimits = LIMITS, *, apart: frozenset[str] = frozenset()
) -> None:
    """Checks one file in a process of its own.

    Args:
        path: For messages only; it is not opened.
        data: The file.
        limits: What the check may take.
        apart: What of a batch runs apart, see `StepGraph`.

    Raises:
        ModelFileError: It is refused, or the process did not get through it.
    """
    process = start_confined(PROCESS, path, data, limits, ",".join(sorted(apart)))
    verdict, ending = _verdict(process, limits.wall_s)
    if verdict.startswith(PASSED):
        names = verdict.removeprefix(PASSED).decode(errors="replace").split(", ")
        _tell_confinement(tuple(name for name in ALL if name in names))
        return
    reason = one_line(verdict) or f"its check {ending}; the file is damaged or not what it seems"
    raise ModelFileError(path, reason)


def start_confined(
    module: str, path: Path, data: bytes, limits: CheckLimits, *arguments: str
) -> "subprocess.Popen[bytes]":
    """Starts a process that gives up what it may do, and then reads a model from its standard input.

    Args:
        module: Of the process; `service.model.check_process` has what it begins with.
        path: For messages only; it is not opened.
        data: The model.
        limits: What the process may take.
        arguments: Further ones of its command line.

    Raises:
        ModelFileError: It cannot be started.
    """
    memory_bytes = limits.memory_bytes + limits.memory_per_byte * len(data)
    numbers = (str(limits.cpu_s), str(memory_bytes), str(os.getpid()))
    command = [sys.executable, "-P", "-m", module, *numbers, *arguments]
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    memory = os.memfd_create("holdfast-model")
    try:
        with open(memory, "wb", closefd=False) as copy:
            copy.write(data)
        os.lseek(memory, 0, os.SEEK_SET)
        return subprocess.Popen(
            command,
            stdin=memory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**kept, **_ONE_THREAD},
        )
    except OSError as error:
        reason = f"its check cannot be started: {error}"
        raise ModelFileError(path, reason, is_passing=is_passing(error)) from None
    finally:
        os.close(memory)


def check_folder(
    folder: Path, max_bytes: int, apart: Apart = MappingProxyType({}), *, skips_refused: bool = False
) -> frozenset[bytes]:
    """Checks every model of a folder, some at a time.

    Returns:
        The fingerprints of those that pass.

    Raises:
        ModelFileError: One of them is refused; with `skips_refused`, all of them are.
    """

    def check(file: ModelFile) -> bytes | ModelFileError:
        try:
            data = read_model(file.path, max_bytes)
            if fingerprint_of(data) not in shipped.FINGERPRINTS:
                check_model(file.path, data, apart=apart.get(file.name, frozenset()))
        except ModelFileError as error:
            if not skips_refused:
                raise
            return error
        return fingerprint_of(data)

    files = list_files(folder)[0] if skips_refused else []
    found = each_file(check, files or find_files(folder))
    passed = frozenset(one for one in found if isinstance(one, bytes))
    if not passed:
        raise next(one for one in found if isinstance(one, ModelFileError))
    return passed


def each_file(function: Callable[[ModelFile], _Result], files: list[ModelFile]) -> list[_Result]:
    """Calls a function for every file, one per core at a time; the first error in their order is raised."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(function, files))


def _verdict(process: "subprocess.Popen[bytes]", wall_s: float) -> tuple[bytes, str]:
    """Waits for what the process says, and sees that it ends.

    Returns:
        What it said, b"" if nothing, and how it ended.
    """
    assert process.stdout is not None, "bug: a check without a pipe"
    with process.stdout as output:
        poll = select.poll()
        poll.register(output, select.POLLIN)
        is_silent = not poll.poll(wall_s * 1000)
        said = b"" if is_silent else os.read(output.fileno(), MAX_VERDICT_BYTES)
    if is_silent or said:
        process.kill()
    code = process.wait()
    return said, _ending(code, wall_s if is_silent else None)


def all_said(process: "subprocess.Popen[bytes]", wall_s: float, max_bytes: int) -> tuple[bytes, str]:
    """Waits for all that a process says, and sees that it ends.

    Returns:
        What it said, at most so many bytes, and how it ended.
    """
    assert process.stdout is not None, "bug: a check without a pipe"
    said, until_s, is_late = bytearray(), time.monotonic() + wall_s, False
    with process.stdout as output:
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while len(said) < max_bytes:
            is_late = not poll.poll(max(0.0, until_s - time.monotonic()) * 1000)
            piece = b"" if is_late else os.read(output.fileno(), max_bytes - len(said))
            if not piece:
                break
            said += piece
    if not is_late and len(said) < max_bytes:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may close its pipe and live on
            process.wait(max(_LEAVE_S, until_s - time.monotonic()))
    process.kill()
    return bytes(said), _ending(process.wait(), wall_s if is_late else None)


def _ending(code: int, exceeded_s: float | None) -> str:
    if exceeded_s is not None:
        return f"took more than {exceeded_s:g} s"
    if code == -signal.SIGXCPU:
        return "took too much CPU time (SIGXCPU)"
    return f"ended with {ending_of(code)}"


def _tell_confinement(holding: tuple[str, ...]) -> None:
    """Says once what confines the checks, as far as a process that has read a file can be believed."""
    with _telling:
        _tell_once(holding)


@functools.cache
def _tell_once(holding: tuple[str, ...]) -> None:
    missing = [name for name in ALL if name not in holding]
    without = f"; not with {', '.join(missing)}" if missing else ""
    _log.info("model files are checked with %s%s", ", ".join(["limits on resources", *holding]), without)


def one_line(verdict: bytes) -> str:
    """Returns what a process has said as a line for people, not too long."""
    words = " ".join(verdict.decode(errors="replace").split())
    shown = "".join(char if char.isprintable() else "?" for char in words)
    return shown if len(shown) <= MAX_REASON_CHARS else shown[:MAX_REASON_CHARS] + "..."
