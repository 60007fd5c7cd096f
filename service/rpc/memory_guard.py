"""Keeps a process within its memory, whatever holds it.

Bounds count what this process knows of. gRPC does not tell what it holds of messages that have not come
whole, so memory itself is looked at: above a limit new calls and streams are refused, and those that have
been silent for longest are ended, a part with every look, until it is below.
"""

import ctypes
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from service.telemetry.process_stats import memory_bytes, resident_bytes

LIMIT_SHARE = 0.8
"""Of the memory that a container or a machine has: the store and the kernel take from it too."""

_log = logging.getLogger(__name__)


class Relieved(Protocol):
    """Holds calls."""

    def relieve(self, shortage: str, now_s: float) -> None:
        """Refuses calls, and ends some, while there is a shortage."""


def limit_bytes(given: int | None, workers: int) -> int:
    """Returns what a worker may have: as set, or its part of what there is; 0 where that is not known."""
    return given if given is not None else int(memory_bytes() * LIMIT_SHARE) // workers


class MemoryGuard:
    """Looks at the memory of this process.

    Args:
        limit_bytes: Resident memory that it may have; 0 is any.
        calls: What to refuse and to end.
        resident: Returns resident memory, bytes.

    Attributes:
        shortage: Why calls are refused; "" while they are not.
    """

    def __init__(
        self, limit_bytes: int, calls: Relieved, resident: Callable[[], int] = resident_bytes
    ) -> None:
        self.shortage = ""
        self._limit_bytes = limit_bytes
        self._calls = calls
        self._resident = resident

    def look(self, now_s: float) -> None:
        """Looks; called every now and then, with monotonic time."""
        shortage = self._find_shortage()
        if bool(shortage) != bool(self.shortage):
            _log.warning("%s", shortage or "memory suffices again; calls are taken")
        if shortage or self.shortage:
            self.shortage = shortage
            self._calls.relieve(shortage, now_s)

    def _find_shortage(self) -> str:
        if not self._limit_bytes or self._resident() <= self._limit_bytes:
            return ""
        _trim()
        held_bytes = self._resident()
        if held_bytes <= self._limit_bytes:
            return ""
        return f"this server is short of memory: it has {held_bytes >> 20} of {self._limit_bytes >> 20} MiB"


def _trim() -> None:
    """Gives the kernel what is free; glibc keeps much of it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
