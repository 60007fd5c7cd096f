"""What this process uses of the machine, as its kernel says; on systems without /proc only its time."""

import contextlib
import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.common.shortage import is_passing

_PROC = "/proc/self"
_FIELDS_BEFORE_START = 19
"""Of /proc/self/stat, behind the name of the program."""


class ProcessUsage(NamedTuple):
    """Bytes, numbers of descriptors, and seconds since the epoch."""

    resident_bytes: int
    open_fds: int
    max_fds: int
    started_s: float


def resident_bytes() -> int:
    """Returns the resident memory; 0 where the system does not say. Needs a descriptor once."""
    try:
        return int(os.pread(_statm(), 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@functools.cache
def _statm() -> int:
    return os.open(f"{_PROC}/statm", os.O_RDONLY | os.O_CLOEXEC)


def memory_bytes() -> int:
    """Returns the memory that there is for this process: its container's limit, or the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _cgroup_limits():
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _cgroup_limits() -> Iterator[Path]:
    """Yields the files that may have a limit: of the group of this process and those above it."""
    root = Path("/sys/fs/cgroup")
    yield root / "memory" / "memory.limit_in_bytes"  # version 1
    with contextlib.suppress(OSError, IndexError):
        group = Path(_PROC, "cgroup").read_text().splitlines()[-1].partition("::")[2]
        for part in (Path(group), *Path(group).parents):
            yield root / str(part).lstrip("/") / "memory.max"


def cpu_s() -> float:
    """Returns the user and system time taken so far, seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def usage() -> ProcessUsage:
    """Returns what is used now; zeros where the system does not say.

    Raises:
        OSError: There is no descriptor left to look with.
    """
    max_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not os.path.isdir(_PROC):
        return ProcessUsage(0, 0, max_fds, 0.0)
    try:
        return ProcessUsage(resident_bytes(), len(os.listdir(f"{_PROC}/fd")), max_fds, _started_s())
    except (OSError, ValueError, IndexError, StopIteration) as error:
        if is_passing(error):
            raise
        # a /proc that shows less, as in sandboxes
        return ProcessUsage(resident_bytes(), 0, max_fds, 0.0)


def _started_s() -> float:
    with open(f"{_PROC}/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[_FIELDS_BEFORE_START])
    with open("/proc/stat") as file:
        boot_s = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")
