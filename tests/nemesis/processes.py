"""Signals to processes, by process id."""

import contextlib
import os
import resource
import signal
from pathlib import Path

from tests.support.waiting import wait_for


def kill(pid):
    """Ends a process with SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def pause(pid):
    """Stops a process with SIGSTOP and waits until it stands."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state_of(pid) in "TtZ", 5)


def resume(pid):
    """Lets a stopped process go on; one that is gone does not care."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def paused(pid):
    """Stops a process for a while."""
    pause(pid)
    try:
        yield
    finally:
        resume(pid)


def children_of(pid, word):
    """Returns the ids of the processes that a process has started whose command line has a word, sorted."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def state_of(pid):
    """Returns the letter of a process's state; Z as well if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def limit_file_size(pid, size_bytes):
    """Makes writes beyond a file size fail with EFBIG, as a full disk would; None takes the limit away.

    The process has to ignore SIGXFSZ; see `StoreProcess`.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))
