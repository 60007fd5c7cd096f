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
from typing import Any, Generic, TypeVar

from holdfast.client import forks
from holdfast.client.descriptors import check_descriptors
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


class _Answer(Generic[Result]):
    """What a call gives, for the thread that waits for it.

    Not a future of `concurrent.futures`: its condition takes its lock in lines of Python, and an interrupt
    between two of them leaves it locked for the event loop, or comes out as RuntimeError.
    """

    __slots__ = ("_error", "_is_done", "_result", "_wakes")

    def __init__(self) -> None:
        self._wakes = threading.Lock()
        self._wakes.acquire()
        self._is_done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._is_done

    def settle(self, result: object, error: BaseException | None) -> None:
        """Gives it, once."""
        self._result, self._error = result, error
        self._is_done = True
        self._wakes.release()

    def wait(self, limit_s: float = -1) -> None:
        """Waits until it is given; -1 is for ever."""
        if not self._is_done:
            self._wakes.acquire(timeout=limit_s)

    def result(self) -> Result:
        self.wait()
        if self._error is not None:
            raise self._error
        result: Result = self._result
        return result


class _Loop:
    """What the thread itself refers to: not the LoopThread, which would then never be dropped."""

    def __init__(self, farewell: Callable[[], Awaitable[None]] | None) -> None:
        self._farewell = farewell
        self._generation = forks.generation()
        self._lock = threading.RLock()  # the collector may run a finaliser while it is held
        self._calls: dict[_Answer[Any], asyncio.Task[Any] | None] = {}
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
        answer: _Answer[Result] = _Answer()
        try:
            self._begin(coroutine, answer)
            return answer.result()
        except BaseException:
            if self._cancel(coroutine, answer):
                answer.wait(INTERRUPT_S)  # what the caller does next finds it ended
            raise
        finally:
            del answer  # else it and the traceback of its error would keep each other

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
                self._loop.call_soon_threadsafe(self._end_asked.set)
                self._is_ending = True  # now: an interrupt before it would leave nobody to end it

    def wait_for_end(self, limit_s: float) -> None:
        self._thread.join(limit_s)
        self._let_callers_go()

    def _begin(self, coroutine: Coroutine[Any, Any, Any], answer: _Answer[Any]) -> None:
        try:
            self.check_same_process()
            if self._is_here():
                raise WrongEventLoop(
                    "a call of the client came from the client's own event loop, and would wait for "
                    "itself: do not use a Client in the iterator that its stream reads from"
                )
            with self._lock:
                if not self._is_ending:
                    self._calls[answer] = None
                    self._loop.call_soon_threadsafe(self._start, coroutine, answer)
                    return
        except BaseException:
            if answer not in self._calls:  # else the loop may have it, and closes it
                coroutine.close()
            raise
        coroutine.close()
        if self._is_exiting and threading.current_thread().daemon:
            return  # it waits, and ends with the process
        raise ClientClosed("the client is closed")

    def _cancel(self, coroutine: Coroutine[Any, Any, Any], answer: _Answer[Any]) -> bool:
        """Cancels a call that runs; returns whether there is one."""
        with self._lock:
            runs = answer in self._calls and not answer.done() and not self._is_ending
            if runs:
                self._loop.call_soon_threadsafe(self._cancel_here, coroutine, answer)
            return runs

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _let_callers_go(self) -> None:
        """Ends the waiting for calls whose loop does not come to their end."""
        for answer in list(self._calls):
            self._answer(answer, error=_closed())

    def _answer(
        self, answer: _Answer[Any], *, result: object = None, error: BaseException | None = None
    ) -> None:
        """Lets a caller go on; not at the exit, see the head of the file."""
        with self._lock:
            if answer.done() or self._is_exiting:
                return
            answer.settle(result, error)

    # -- in the thread of the loop ------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        await self._end_asked.wait()
        with self._lock:
            self._is_ending = True  # where an interrupt came before whoever asked could note it
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

    def _start(self, coroutine: Coroutine[Any, Any, Any], answer: _Answer[Any]) -> None:
        if answer.done():  # its caller was interrupted or let go
            coroutine.close()
            self._calls.pop(answer, None)
            return
        task = self._loop.create_task(coroutine)
        self._calls[answer] = task
        task.add_done_callback(lambda task: self._settle(task, answer))
        if self._is_ending:
            task.cancel()

    def _cancel_here(self, coroutine: Coroutine[Any, Any, Any], answer: _Answer[Any]) -> None:
        task = self._calls.get(answer)
        if task is not None:
            task.cancel()
        elif answer in self._calls:  # the interrupt came before `_start` was asked for
            coroutine.close()
            del self._calls[answer]
            self._answer(answer, error=asyncio.CancelledError())

    def _settle(self, task: asyncio.Task[Any], answer: _Answer[Any]) -> None:
        self._calls.pop(answer, None)
        if task.cancelled():
            error: BaseException | None = _closed() if self._is_ending else asyncio.CancelledError()
        else:
            error = task.exception()
        self._answer(answer, result=None if error else task.result(), error=error)


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
