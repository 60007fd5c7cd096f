"""Ends calls whose last words nobody reads.

A reply and a status stay in gRPC until the client has room for them, and grpc.aio has no way to give a call
up: it holds a call for as long as the task lives that began the handler's. So every task remembers which
began it. When both are cancelled nothing refers to the call any more, and gRPC resets its stream and
frees what it held.
"""

import asyncio
import gc
import math
import weakref
from collections.abc import Coroutine, Generator
from typing import Any

COLLECTS_AFTER_S = 1.0


class RpcTask(asyncio.Task[Any]):
    """A task.

    Attributes:
        parent: What began it, weakly: that one holds this.
        gone_by_s: Monotonic time by which the call that runs in it has to be over.
    """

    __slots__ = ("gone_by_s", "parent")

    parent: "weakref.ref[asyncio.Task[Any]] | None"
    gone_by_s: float

    def give_up(self) -> None:
        """Ends the call that runs in it, written or not."""
        self.gone_by_s = math.inf
        parent = None if self.parent is None else self.parent()
        if parent is not None:
            parent.cancel()
        self.cancel()


def remember_parents(loop: asyncio.AbstractEventLoop) -> None:
    """Makes every task of a loop an `RpcTask`; called before its gRPC server is started."""
    loop.set_task_factory(_new_task)


def end_within(seconds: float) -> None:
    """Lets the call that runs in this task be over within so long."""
    task = asyncio.current_task()
    if isinstance(task, RpcTask):
        task.gone_by_s = asyncio.get_running_loop().time() + seconds


def give_up_unread(tasks: set[asyncio.Task[Any]], now_s: float) -> None:
    """Ends calls that should be over."""
    late = [task for task in tasks if isinstance(task, RpcTask) and now_s >= task.gone_by_s]
    for task in late:
        task.give_up()
    if late:  # gRPC's side of an aborted call holds its exception, and that the call
        asyncio.get_running_loop().call_later(COLLECTS_AFTER_S, gc.collect)


def _new_task(
    loop: asyncio.AbstractEventLoop,
    work: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
    **options: Any,
) -> RpcTask:
    task = RpcTask(work, loop=loop, **options)
    parent = asyncio.current_task(loop)
    task.parent = None if parent is None else weakref.ref(parent)
    task.gone_by_s = math.inf
    return task
