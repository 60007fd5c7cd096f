"""The rank of threads."""

import contextlib
import os
import threading

NICENESS = 10
"""Where there are too few cores, threads of this rank come last."""


def be_nice() -> None:
    """Lets all other threads go first; of a thread on Linux, elsewhere refused or of the whole process."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
