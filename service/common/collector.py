"""Keeps the garbage collector out of the way of a server."""

import gc


def relieve_collector() -> None:
    """Spares it what start-up made, and lets a few batches pass between its runs; call once it serves.

    Chunks and records hold no cycles, so reference counts free them; the collector only looks at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
