"""Calls of threads on the event loop of a client without asyncio: bounded, interruptible, closed once."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from holdfast.errors import ClientClosed, WrongEventLoop

Result = TypeVar("Result")

UNWIND_S = 0.5
"""So long an interrupted thread waits until the call that it left is over."""

CLOSE_S = 5.0
"""So long `close` waits until other threads have seen that the client is closed."""


class LoopThread(Protocol):
    """An event loop in a thread."""

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made it."""

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine to its end; an interrupt of the caller cancels it."""

    def close(self) -> None:
        """Ends the thread."""


class Runner:
    """Runs the calls of any number of threads, until it is closed.

    Args:
        thread: Runs the event loop.
    """

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._loop = thread.run(_loop_here())
        self._lock = threading.RLock()  # taken itself: a condition takes it in lines that interrupts part
        self._changed = threading.Condition(self._lock)
        self._running: set[_Outcome[Any]] = set()
        self._is_closed = False
        self._has_ended = False

    def run(
        self,
        coroutine: Coroutine[Any, Any, Result],
        take_back: Callable[[Result], None] | None = None,
    ) -> Result:
        """Runs a coroutine to its end and returns what it gave.

        Args:
            coroutine: For the event loop.
            take_back: Called there with a result that had come when the caller was interrupted, and did not
                reach it.

        Raises:
            ClientClosed: It is closed.
            WrongEventLoop: The caller is on the event loop itself, which would wait for itself.
        """
        outcome = _Outcome(coroutine)
        try:
            try:
                self._check_thread()
                self._enter(outcome)
                return self._thread.run(outcome.run())
            finally:
                self._running.discard(outcome)  # one call, which no interrupt parts
                if self._is_closed:
                    self._wake_closer()
        except Exception:
            outcome.close()
            raise
        except BaseException:  # an interrupt
            self._unwind(outcome, take_back)
            raise

    def post(self, callback: Callable[[], None]) -> None:
        """Has the event loop call something, without waiting for it: also when the interpreter exits."""
        if self._thread.is_inherited:  # the loop is the parent's, and so is what is to be given free
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and what hangs on it is gone
            self._loop.call_soon_threadsafe(callback)

    def close(self, closing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ends all calls, those of other threads too; once that is done, it does nothing.

        Args:
            closing: Closes the client on the loop.
        """
        if self._is_here():  # a finaliser that the collector runs: it only begins
            self._is_closed = True
            self._thread.close()
            return
        if self._has_ended:
            return
        self._is_closed = True
        try:
            with contextlib.suppress(ClientClosed):  # the loop has ended before, and the client with it
                self._thread.run(closing())
            with self._lock:
                self._changed.wait_for(lambda: not self._running, CLOSE_S)
            self._thread.close()
        except BaseException:  # also an interrupt: the next `close` does the rest
            self._is_closed = False
            raise
        self._has_ended = True

    def _enter(self, outcome: "_Outcome[Any]") -> None:
        with self._lock:
            if self._is_closed:
                raise ClientClosed("the client is closed").tell("nothing was sent")
            self._running.add(outcome)

    def _wake_closer(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _check_thread(self) -> None:
        if self._is_here():
            raise WrongEventLoop(
                "a call of the client came from the client's own event loop, and would wait for itself: do "
                "not use a Client in the asynchronous iterator that its stream reads from"
            ).tell("nothing was sent")

    def _unwind(self, outcome: "_Outcome[Result]", take_back: Callable[[Result], None] | None) -> None:
        """Waits until a call that was cancelled is over, so that what the session says then is so."""
        is_over = threading.Lock()  # an Event can turn a second interrupt into RuntimeError
        is_over.acquire()

        def look() -> None:
            if outcome.has_result and take_back is not None:
                take_back(outcome.result)
            is_over.release()

        self.post(lambda: outcome.when_over(look))
        is_over.acquire(timeout=UNWIND_S)


async def _loop_here() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class _Outcome(Generic[Result]):
    """Runs a coroutine, and knows on its event loop how that ended."""

    result: Result

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._coroutine = coroutine
        self._is_begun = False
        self._is_over = False
        self._callbacks: list[Callable[[], None]] = []
        self.has_result = False

    async def run(self) -> Result:
        """Returns what the coroutine gives."""
        self._is_begun = True
        try:
            self.result = await self._coroutine
            self.has_result = True
            return self.result
        finally:
            self._is_over = True
            for callback in self._callbacks:
                callback()

    def close(self) -> None:
        """Gives the coroutine up if it has not begun, which it then never does."""
        if not self._is_begun:
            self._coroutine.close()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls something once the coroutine, which is cancelled, has ended."""
        if not self._is_begun:
            self.close()
            callback()
        elif self._is_over:
            callback()
        else:
            self._callbacks.append(callback)
