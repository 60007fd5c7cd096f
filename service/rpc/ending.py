"""Ends calls whose last words nobody reads.

A reply and a status stay in gRPC until the client has room for them, and grpc.aio has no way to give a call
up: it holds a call for as long as the task lives that began the handler's. So the context of a call's tasks
has its ending, which knows both. When both are cancelled nothing refers to the call any more,
and gRPC resets its stream and frees what it held.
"""

import asyncio
import contextvars
import gc
import math
import time
from collections.abc import Coroutine
from typing import Any

COLLECTS_AFTER_S = 1.0


class Ending:
    """Of one call.

    Attributes:
        gone_by_s: Monotonic time by which the call has to be over.
        server_task: What holds the call.
        handler_task: What serves it; set once it has a time to be over.
    """

    __slots__ = ("gone_by_s", "handler_task", "server_task")

    server_task: "asyncio.Task[None]"

    def __init__(self) -> None:
        self.gone_by_s = math.inf
        self.handler_task: asyncio.Task[Any] | None = None


_ENDING: contextvars.ContextVar[Ending] = contextvars.ContextVar("ending")


class Endings:
    """Of the calls of one server that are under way."""

    def __init__(self) -> None:
        self._endings: dict[asyncio.Task[None], Ending] = {}  # the loop itself refers to tasks weakly only

    def begin(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        """Begins the task that holds a call."""
        ending, context = Ending(), contextvars.copy_context()
        context.run(_ENDING.set, ending)
        task = ending.server_task = loop.create_task(work, context=context)
        self._endings[task] = ending
        task.add_done_callback(self._over)

    def give_up_unread(self, now_s: float) -> None:
        """Ends calls that should be over."""
        late = [ending for ending in self._endings.values() if now_s >= ending.gone_by_s]
        for ending in late:
            _give_up(ending)
        if late:  # gRPC's side of an aborted call holds its exception, and that the call
            asyncio.get_running_loop().call_later(COLLECTS_AFTER_S, gc.collect)

    def _over(self, task: "asyncio.Task[None]") -> None:
        ending = self._endings.pop(task)
        del ending.server_task  # the context of that one has this
        ending.handler_task = None


def end_within(seconds: float, task: "asyncio.Task[Any] | None" = None) -> None:
    """Lets the call that runs in this task be over within so long; whoever knows the task may give it."""
    ending = _ENDING.get(None)
    if ending is not None:
        ending.gone_by_s = time.monotonic() + seconds
        ending.handler_task = task or asyncio.current_task()


def _give_up(ending: Ending) -> None:
    """Ends a call, written or not."""
    ending.gone_by_s = math.inf
    ending.server_task.cancel()
    if ending.handler_task is not None:
        ending.handler_task.cancel()
