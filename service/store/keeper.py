"""Keeps an embedded store running: whatever ends it, it is started again on its files.

A connection that is never written to says when the store has gone, at once and without polling. Whoever of
several servers comes first starts it; the others find it running. What fails is tried again, more slowly,
for as long as the server runs, and said once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from service.common.background import RETRY_PAUSE_S, Trouble
from service.store.data_folder import EmbeddedStoreError
from service.store.embedded import EmbeddedStore

_log = logging.getLogger(__name__)

PAUSES_S = (0.0, 0.1, 0.5, 1.0, 2.0)
"""Before the store is started again, by how many starts were in vain in a row; the last one repeats."""

EARLY_S = 10.0
"""A store that ends within so long after its start has been started in vain."""

LOOK_S = 1.0
"""Between looks at the files without which a store that runs cannot be reached, or keeps nothing."""


@contextlib.asynccontextmanager
async def kept(store: EmbeddedStore) -> AsyncIterator[None]:
    """Keeps a store running that is open."""
    keeper = asyncio.create_task(_keep(store))
    try:
        yield
    finally:
        store.abandon()
        keeper.cancel()
        await asyncio.wait([keeper])
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            _log.error("bug: nobody kept the embedded store running", exc_info=error)


async def _keep(store: EmbeddedStore) -> None:
    vain_count = 0
    trouble = Trouble("embedded_store")
    while True:
        with trouble:
            opened_s = time.monotonic()
            await _until_gone(store)
            vain_count = vain_count + 1 if time.monotonic() - opened_s < EARLY_S else 0
            why = await asyncio.to_thread(store.why_ended)
            if vain_count <= 1:
                ended = "the embedded store (process %d) has ended: %s; it is started again"
                _log.error(ended, store.pid, why)
            vain_count = await _open_again(store, vain_count)
            continue
        await asyncio.sleep(RETRY_PAUSE_S)


async def _open_again(store: EmbeddedStore, vain_count: int) -> int:
    """Starts the store, however often it takes; returns how many starts were in vain, this one not."""
    said = ""
    gone_s = time.monotonic()
    while True:
        await asyncio.sleep(PAUSES_S[min(vain_count, len(PAUSES_S) - 1)])
        try:
            await asyncio.to_thread(store.open)
        except EmbeddedStoreError as error:
            if str(error) != said:
                said = str(error)
                _log.error("the embedded store cannot be started, and is tried until it can: %s", said)
            vain_count += 1
        else:
            took_s = time.monotonic() - gone_s
            level = logging.INFO if vain_count <= 1 or said else logging.DEBUG
            _log.log(level, "the embedded store runs again, process %d, after %.2f s", store.pid, took_s)
            return vain_count


async def _until_gone(store: EmbeddedStore) -> None:
    """Waits until the store has ended, or lives on without its socket or its files."""
    lifeline = store.lifeline
    if lifeline is None:  # it was being opened, and something else went wrong
        return
    loop = asyncio.get_running_loop()
    has_ended = asyncio.Event()
    loop.add_reader(lifeline.fileno(), has_ended.set)
    try:
        while store.is_whole:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await has_ended.wait()
    finally:
        loop.remove_reader(lifeline.fileno())
