"""What a fork does to clients, and how a child is kept from touching what it cannot use.

A child has only the thread that forked. The core of gRPC notices a fork and starts its own threads again;
grpc.aio does not: the one thread that waits for the replies of all its channels stays behind in the parent,
and a channel that the child makes waits for it for ever. Worse, the core ends the inherited connections and
tells that thread so, in memory that new threads have got meanwhile: a child may crash that touches nothing.

So a fork is harmless only while grpc.aio has been let go of completely, which it is when the last channel
and call of the process are closed and gone. Clients that are open let go of it for the moment of the fork:
their connections are cut, and the parent connects anew for what was under way, as after any other cut.

Where that cannot be, in a loop that forks itself in the middle of a call, or because others have opened
channels, a new client in the child says so instead of hanging. And what is inherited is not even freed in
the child: that would wait for the thread that is not there. It keeps it until it ends, for some memory.
"""

import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Protocol

from holdfast.errors import ClientForked

_POLLER = "(_poll_wrapper)"
"""End of the name of the thread in which grpc.aio waits."""

_CORE_THREADS = ("event_engine", "lifeguard", "grpc_", "timer_manager")
"""Begin of the names of the threads of gRPC's core."""

_NO = ("0", "false", "no", "n", "f")

_TASKS = Path("/proc/self/task")


LET_GO_S = 1.0
"""Longest that a fork waits for clients to let go of gRPC."""

SETTLE_S = 0.3
"""After clients have let go, so long a fork waits for the threads of the core to end; they hold locks."""

POLL_S = 0.002


class Inheritance(Protocol):
    """What a child must not free."""

    def let_go(self) -> "Future[None] | None":
        """Begins to let go of gRPC, since the process is about to fork; returns when that is done."""

    def inherited(self) -> Iterable[object]:
        """Returns the objects that keep everything of gRPC alive, itself among them."""


_owners: "weakref.WeakSet[Inheritance]" = weakref.WeakSet()
_generation = 0
_ran_at_fork = False
_runs_now = False
_forking: set[int] = set()
"""Threads that fork now."""

_released_s = -math.inf


def generation() -> int:
    """Returns how many forks lie between this process and the first: what was made before has less."""
    return _generation


def check_same_process(made_in: int) -> None:
    """Refuses what was made before a fork.

    Args:
        made_in: The generation at that time.

    Raises:
        ClientForked: This is a child of the process that made it.
    """
    if made_in != _generation:
        raise ClientForked(
            "this client was made before the process forked, and works in the parent only: "
            "make clients after the fork"
        )


def check_usable() -> None:
    """Refuses to begin with gRPC in a process in which it would hang.

    Raises:
        ClientForked: grpc.aio was in use in the parent when it forked.
    """
    if _ran_at_fork:
        raise ClientForked(
            "gRPC was in use in the parent when it forked, and cannot be used in the child: close clients "
            "before the fork (and channels and servers of grpc.aio that others opened), or start the child "
            "with the method 'spawn' or 'forkserver'"
        )


def is_forking() -> bool:
    """Whether the process is about to fork: then nothing of gRPC is opened."""
    return bool(_forking)


def keep_in_children(owner: Inheritance) -> None:
    """Has children of this process keep what `owner` names for as long as they live."""
    _owners.add(owner)


def is_grpc_running() -> bool:
    """Returns whether gRPC has something in this process that a fork would break."""
    if any(thread.name.endswith(_POLLER) for thread in threading.enumerate()):
        return True
    return not _core_survives_forks() and _has_core_threads()


def note_release() -> None:
    """Notes that a client has let go of gRPC, whose threads take a moment to end."""
    global _released_s
    _released_s = time.monotonic()


def _has_core_threads() -> bool:
    return any(name.startswith(_CORE_THREADS) for name in _thread_names())


def _core_survives_forks() -> bool:
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() not in _NO


def _thread_names() -> list[str]:
    """Names of the threads of this process, those that are not Python's among them; only Linux tells."""
    names = []
    for task in _TASKS.glob("*/comm"):
        try:
            names.append(task.read_text())
        except OSError:  # it has ended meanwhile
            continue
    return names


def _before_fork() -> None:
    global _runs_now
    _forking.add(threading.get_ident())
    wait([done for owner in list(_owners) if (done := owner.let_go()) is not None], LET_GO_S)
    while time.monotonic() < _released_s + SETTLE_S and _has_core_threads():
        time.sleep(POLL_S)
    _runs_now = is_grpc_running()


def _in_parent() -> None:
    _forking.discard(threading.get_ident())


def _in_child() -> None:
    global _generation, _ran_at_fork
    _forking.clear()
    _generation += 1
    _ran_at_fork = _ran_at_fork or _runs_now
    for owner in list(_owners):
        for thing in owner.inherited():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))  # not even the end of the process frees it


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
