"""The event loop of a client without asyncio, in a thread of its own; how calls get there and back.

Whoever waits for a call can be interrupted, and is let go when the client is closed, by whichever thread.
The loop ends in its own thread, in order: the calls are cancelled and clean up, then what they used is
closed, then the loop. So closing works from anywhere, also from the loop itself, where the collector may
have run a finaliser; only then it is not waited for.

At the exit of the interpreter every loop is ended before daemon threads are frozen. Those of them that wait
for a call are not woken up for that: they would have nothing to do but to print that they failed.
"""

import asyncio
import atexit
import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from holdfast import forks
from holdfast.descriptors import check_descriptors
from holdfast.errors import ClientClosed, WrongEventLoop

Result = TypeVar("Result")

CLEAN_UP_S = 1.0
"""For cancelled calls to clean up, and again for what they used to be closed."""

INTERRUPT_S = 0.5
"""For a call to end whose caller was interrupted; another interrupt cuts this short too."""

CLOSE_S = 5.0
"""Longest wait for a loop to end: user code that never returns may hold it up."""

EXIT_S = 2.0
"""The same for all loops together at the exit of the interpreter."""


class LoopThread:
    """Runs coroutines for threads that are not asyncio's. Ends by itself when nobody refers to it.

    Args:
        farewell: Called in the loop when it ends, after its calls: closes what they used.

    Raises:
        OSError: Too many files are open.
        ClientForked: gRPC cannot be used in this process.
    """

    def __init__(self, farewell: Callable[[], Awaitable[None]] | None = None) -> None:
        forks.check_usable()
        check_descriptors()
        self._loop = _Loop(farewell)
        finalizer = weakref.finalize(self, self._loop.be_dropped)
        finalizer.atexit = False  # what is open then is ended together, see below

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made it."""
        return self._loop.is_inherited

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine to its end; an interrupt of the caller cancels it, and is not held up by it.

        Raises:
            ClientClosed: The loop was closed before the end.
            ClientForked: The loop runs in the parent of this process.
            WrongEventLoop: The caller is the loop itself, which would wait for itself.
        """
        return self._loop.run(coroutine)

    def clean_up(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Runs what a generator does when it is closed, wherever that is; nothing once the loop is gone."""
        self._loop.clean_up(coroutine)

    def close(self) -> None:
        """Ends calls, loop and thread. May be called again, and by any thread; in the loop it only begins.

        Raises:
            ClientForked: This is a child of the process that made it.
        """
        self._loop.check_same_process()
        self._loop.close()


class _Loop:
    """What the thread itself refers to: not the LoopThread, which would then never be dropped."""

    def __init__(self, farewell: Callable[[], Awaitable[None]] | None) -> None:
        self._farewell = farewell
        self._generation = forks.generation()
        self._lock = threading.RLock()  # the collector may run a finaliser while it is held
        self._calls: dict[Future[Any], asyncio.Task[Any] | None] = {}
        self._is_ending = False
        self._is_exiting = False
        self._loop = asyncio.new_event_loop()
        self._end_asked = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="holdfast", daemon=True)
        self._thread.start()
        forks.keep_in_children(self)
        _running.add(self)

    @property
    def is_inherited(self) -> bool:
        return self._generation != forks.generation()

    def check_same_process(self) -> None:
        forks.check_same_process(self._generation)

    def inherited(self) -> Iterable[object]:
        """Returns what a child must not free."""
        return [self]

    def let_go(self) -> None:
        """Has nothing of gRPC itself."""

    # -- in threads that call -----------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future: Future[Result] = Future()
        try:
            self._begin(coroutine, future)
            return future.result()
        except BaseException:
            if self._cancel(future):
                wait([future], INTERRUPT_S)  # what the caller does next finds it ended
            raise
        finally:
            del future  # else it and the traceback of its error would keep each other

    def clean_up(self, coroutine: Coroutine[Any, Any, object]) -> None:
        if self.is_inherited or self._is_ending:
            coroutine.close()
            return
        if self._is_here():
            self._loop.create_task(coroutine)
            return
        with contextlib.suppress(ClientClosed):
            self.run(coroutine)

    def close(self) -> None:
        if sys.is_finalizing():  # threads no longer run, and what was open then was ended before
            return
        self.ask_to_end()
        if not self._is_here():
            self.wait_for_end(CLOSE_S)

    def be_dropped(self) -> None:
        """Ends it without waiting: the collector runs in any thread, at any moment."""
        if not (self.is_inherited or sys.is_finalizing()):
            self.ask_to_end()

    def ask_to_end(self, *, at_exit: bool = False) -> None:
        with self._lock:
            self._is_exiting = self._is_exiting or at_exit
            if not self._is_ending:
                self._is_ending = True
                self._loop.call_soon_threadsafe(self._end_asked.set)

    def wait_for_end(self, limit_s: float) -> None:
        self._thread.join(limit_s)
        self._let_callers_go()

    def _begin(self, coroutine: Coroutine[Any, Any, Any], future: Future[Any]) -> None:
        try:
            self.check_same_process()
            if self._is_here():
                raise WrongEventLoop(
                    "a call of the client came from the client's own event loop, and would wait for "
                    "itself: do not use a Client in the iterator that its stream reads from"
                )
            with self._lock:
                if not self._is_ending:
                    self._calls[future] = None
                    self._loop.call_soon_threadsafe(self._start, coroutine, future)
                    return
        except BaseException:
            coroutine.close()
            raise
        coroutine.close()
        if self._is_exiting and threading.current_thread().daemon:
            return  # it waits, and ends with the process
        raise ClientClosed("the client is closed")

    def _cancel(self, future: Future[Any]) -> bool:
        """Cancels a call that runs; returns whether there is one."""
        with self._lock:
            runs = future in self._calls and not future.done() and not self._is_ending
            if runs:
                self._loop.call_soon_threadsafe(self._cancel_here, future)
            return runs

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _let_callers_go(self) -> None:
        """Ends the waiting for calls whose loop does not come to their end."""
        for future in list(self._calls):
            self._answer(future, error=_closed())

    def _answer(
        self, future: Future[Any], *, result: object = None, error: BaseException | None = None
    ) -> None:
        """Lets a caller go on; not at the exit, see the head of the file."""
        with self._lock:
            if future.done() or self._is_exiting:
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    # -- in the thread of the loop ------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        await self._end_asked.wait()
        await self._end_calls()
        try:
            if self._farewell is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2 * CLEAN_UP_S):
                        await self._farewell()
        finally:
            await self._end_rest()

    async def _end_calls(self) -> None:
        tasks = [task for task in self._calls.values() if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLEAN_UP_S)
        self._let_callers_go()

    async def _end_rest(self) -> None:
        """Cuts off what else runs: first those that use generators, then these."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CLEAN_UP_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEAN_UP_S):
                await self._loop.shutdown_asyncgens()

    def _start(self, coroutine: Coroutine[Any, Any, Any], future: Future[Any]) -> None:
        if future.done():  # its caller was interrupted or let go
            coroutine.close()
            self._calls.pop(future, None)
            return
        task = self._loop.create_task(coroutine)
        self._calls[future] = task
        task.add_done_callback(lambda task: self._settle(task, future))
        if self._is_ending:
            task.cancel()

    def _cancel_here(self, future: Future[Any]) -> None:
        task = self._calls.get(future)
        if task is not None:
            task.cancel()

    def _settle(self, task: asyncio.Task[Any], future: Future[Any]) -> None:
        self._calls.pop(future, None)
        if task.cancelled():
            error: BaseException | None = _closed() if self._is_ending else asyncio.CancelledError()
        else:
            error = task.exception()
        self._answer(future, result=None if error else task.result(), error=error)


def _closed() -> ClientClosed:
    return ClientClosed("the client was closed while the call was under way")


_running: "weakref.WeakSet[_Loop]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Ends every loop that is still open, while their threads can still run."""
    loops = [loop for loop in _running if not loop.is_inherited]
    for loop in loops:
        loop.ask_to_end(at_exit=True)
    until_s = time.monotonic() + EXIT_S
    for loop in loops:
        loop.wait_for_end(max(0.0, until_s - time.monotonic()))
