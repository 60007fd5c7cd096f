"""Work that goes on for as long as the process: what goes wrong in it is said, counted, and outlived.

A moment without descriptors, memory or threads must not end for good what keeps a server alive. So all work
of that kind goes through `keep_going` or has a `Trouble` of its own; `tests/test_architecture.py` looks at
every task and thread. The counts are the process's, as its log is; `service.telemetry.metrics` shows them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

from service.common.shortage import is_passing

_log = logging.getLogger(__name__)

TASKS = (
    "heartbeat", "process_usage", "store_ping", "store_settings", "store_connection", "store_sentinel",
    "store_cluster_map", "store_channels", "watches", "embedded_store", "credentials", "models", "engine",
    "watchdog", "workers", "http",
)  # fmt: skip
"""Names for the log and for the label `task`."""

RETRY_PAUSE_S = 0.25
"""After a turn that failed."""

_counts = dict.fromkeys(TASKS, 0)


def error_counts() -> list[int]:
    """Returns how often each of TASKS has failed in this process."""
    return list(_counts.values())


class Trouble:
    """What is wrong with one task. As a context it takes the exception of its block.

    Args:
        task: One of TASKS.
    """

    def __init__(self, task: str) -> None:
        assert task in _counts, f"bug: {task} is not in TASKS"
        self._task = task
        self._told: set[str] = set()

    def note(self, error: BaseException) -> None:
        """Counts a failure, and says it where the same was not said since the task last worked."""
        _counts[self._task] += 1
        if (kind := _kind_of(error)) in self._told:
            return
        self._told.add(kind)
        if isinstance(error, Exception) and is_passing(error):
            _log.error("task %s: %s; it goes on", self._task, str(error) or kind)
        else:
            _log.error("bug: task %s failed; it goes on", self._task, exc_info=error)

    def worked(self) -> None:
        """Notes that nothing is wrong now."""
        if self._told:
            self._told.clear()
            _log.info("task %s works again", self._task)

    def __enter__(self) -> None:
        """Begins a turn."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Ends a turn; cancellation and the end of the interpreter go through."""
        if isinstance(error, Exception):
            self.note(error)
            return True
        if error is None and self._told:
            self.worked()
        return False


async def keep_going(task: str, turn: Callable[[], Awaitable[None]]) -> None:
    """Takes one turn after the other until it is cancelled, whatever a turn raises.

    Args:
        task: One of TASKS.
        turn: Has a pause of its own.
    """
    trouble = Trouble(task)
    while True:
        with trouble:
            await turn()
            continue
        await asyncio.sleep(RETRY_PAUSE_S)


def _kind_of(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return f"{type(error).__name__} {number}"


class Wake:
    """Wakes one task; a third of the price of an `asyncio.Event`, several times per chunk.

    It has no memory: the task looks whether there is something to do, and waits if there is not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Returns at the next `ring`; what rang before does not count."""
        self._waiter = self._loop.create_future()
        await self._waiter

    def ring(self) -> None:
        """Wakes the task that waits, if there is one."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
