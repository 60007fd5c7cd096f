"""Stops one thread of a process, as a debugger does; the others run on. Linux only.

A signal stops a whole process. A store whose thread for syncs stands still is one whose disk takes for ever
to sync: it goes on answering, which no slow disk of a test machine could be made to show at will.
"""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ANY_KIND = 0x40000000
"""`__WALL` of waitpid: threads that are no children can be waited for by who traces them."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def can_stop_threads():
    """Whether this process may trace its children."""
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            _ptrace(SEIZE, child.pid)
        except OSError:
            return False
        finally:
            child.kill()
    return True


@contextlib.contextmanager
def stopped_thread(pid, name):
    """Stops a thread of a child process, by the beginning of its name; inside, the process may be killed.

    It has to be entered and left in one thread, and left before a killed process is waited for.

    Raises:
        PermissionError: This process may not trace its children.
    """
    number = _number_of(pid, name)
    _ptrace(SEIZE, number)
    _ptrace(INTERRUPT, number)
    os.waitpid(number, ANY_KIND)
    try:
        yield
    finally:
        try:
            _ptrace(DETACH, number)
        except ProcessLookupError:  # killed meanwhile: it is gone once its end was taken notice of
            os.waitpid(number, ANY_KIND)


def _number_of(pid, name):
    for folder in Path(f"/proc/{pid}/task").iterdir():
        if (folder / "comm").read_text().startswith(name):
            return int(folder.name)
    raise AssertionError(f"process {pid} has no thread {name}")


def _ptrace(request, number):
    if _libc.ptrace(request, number, None, None) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
