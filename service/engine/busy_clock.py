"""How long the event loop has been busy: on a core, or waiting for one that others use."""

import os
import time

_SCHEDSTAT = "/proc/thread-self/schedstat"
"""Linux: nanoseconds on a core, nanoseconds waiting for one, turns."""


class BusyClock:
    """A clock of the thread that makes it, which is the event loop's.

    Where the kernel does not count the waiting, CPU time is all there is, and a loop that shares its core
    looks less busy than it is.
    """

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._file = None

    def read_s(self) -> float:
        """Returns seconds since some moment in the past; 2 us."""
        if self._file is None:
            return time.thread_time()
        try:
            running_ns, waiting_ns, _ = os.pread(self._file, 64, 0).split()
            return (int(running_ns) + int(waiting_ns)) * 1e-9
        except (OSError, ValueError):  # a clock that is only less exact must not stop an engine
            self.close()
            return time.thread_time()

    def close(self) -> None:
        """Gives the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
