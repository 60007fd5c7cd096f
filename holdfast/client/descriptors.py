"""Whether this process may still open files: gRPC ends the whole process when it may not."""

import os

NEEDED = 12
"""Descriptors that an event loop and gRPC's own start take together, and one connection."""


def check_descriptors() -> None:
    """Makes sure that as many descriptors are free as a client needs to start.

    Raises:
        OSError: They are not: too many open files.
    """
    taken: list[int] = []
    try:
        for _ in range(NEEDED):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 -- to be closed
    finally:
        for descriptor in taken:
            os.close(descriptor)
