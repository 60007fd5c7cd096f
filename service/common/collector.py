"""Keeps the garbage collector out of the way of a server, and of the imports of a command."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def sparing_imports() -> Iterator[None]:
    """Spares it what is made inside, now and when the process ends; for imports, which stay.

    A tenth of the time that they take, and most of what a short command needs to end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def relieve_collector() -> None:
    """Spares it what start-up made, and lets a few batches pass between its runs; call once it serves.

    Chunks and records hold no cycles, so reference counts free them; the collector only looks at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
