"""An event loop for several processes in one thread, with virtual time; a seed decides who is next.

Each process has its own line of callbacks, which run in order, as on a loop of its own: what asyncio
promises is kept. Between processes there is no order but that of the messages that they exchange, so which
of them makes the next step is drawn. When nobody has anything to do the time jumps to the next timer. A
step takes a microsecond.

To which process something belongs goes with the context in which it was begun.
"""

import asyncio
import contextvars
import heapq
import itertools
import random
import weakref
from collections import deque

STEP_S = 1e-6

_PROCESS = contextvars.ContextVar("process")


class Stuck(AssertionError):
    """Nobody has anything to do, and what was waited for has not come."""


class Process:
    """Runs its callbacks in order, unless it is paused or dead.

    Attributes:
        name: For transcripts.
        number: In the order in which processes were made.
        context: What begins in it belongs to the process.
        is_alive: It was not killed.
        held_until_s: It does nothing before.
    """

    def __init__(self, name, number):
        self.name = name
        self.number = number
        self.is_alive = True
        self.held_until_s = 0.0
        self.ready = deque()
        self.tasks = weakref.WeakSet()
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)


class Handle:
    """A callback; see `asyncio.Handle`."""

    __slots__ = ("_when_s", "arguments", "callback", "context", "is_cancelled", "process")

    def __init__(self, callback, arguments, context, when_s=0.0):
        self.callback = callback
        self.arguments = arguments
        self.context = contextvars.copy_context() if context is None else context
        self.process = self.context[_PROCESS]
        self.is_cancelled = False
        self._when_s = when_s

    def cancel(self):
        self.is_cancelled = True
        self.callback = self.arguments = None

    def cancelled(self):
        return self.is_cancelled

    def when(self):
        return self._when_s


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The loop of all processes.

    Attributes:
        random: What everything that is left to chance is drawn from.
        now_s: Virtual time.
        step_count: Callbacks that have run.
        trace: Names the order in which processes have made their steps.
        troubles: What no task has taken care of.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now_s = 1000.0
        self.step_count = 0
        self.trace = 0
        self.troubles = []
        self._numbers = itertools.count()
        self._processes = []
        self._dead = []
        self._busy = []  # processes that have something to do and are not held
        self._timers = []
        self._is_closed = False

    # -- processes ----------------------------------------------------------------------------

    def new_process(self, name):
        """Starts a process."""
        process = Process(name, len(self._processes))
        self._processes.append(process)
        return process

    def spawn(self, process, work, name=None):
        """Runs a coroutine in a process; returns its task."""
        return process.context.run(self.create_task, work, name=name)

    def hold(self, process, seconds):
        """Stops a process for so long: its callbacks wait."""
        process.held_until_s = max(process.held_until_s, self.now_s + seconds)
        if process in self._busy:
            self._busy.remove(process)
        self.call_at(process.held_until_s, self._go_on, process, context=self._processes[0].context)

    def kill(self, process):
        """Ends a process where it stands."""
        process.is_alive = False
        self._dead += process.tasks  # they stay as they are, until the end
        if process in self._busy:
            self._busy.remove(process)

    def _go_on(self, process):
        may_go_on = process.ready and process.is_alive and self.now_s >= process.held_until_s
        if may_go_on and process not in self._busy:
            self._busy.append(process)

    @property
    def process(self):
        """The process that makes the present step."""
        return _PROCESS.get()

    # -- what asyncio asks of a loop ------------------------------------------------------------

    def time(self):
        return self.now_s

    def call_soon(self, callback, *arguments, context=None):
        handle = Handle(callback, arguments, context)
        self._line_up(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when_s, callback, *arguments, context=None):
        handle = Handle(callback, arguments, context, when_s)
        heapq.heappush(self._timers, (when_s, next(self._numbers), handle))
        return handle

    def call_later(self, delay_s, callback, *arguments, context=None):
        return self.call_at(self.now_s + delay_s, callback, *arguments, context=context)

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, work, *, name=None, context=None):
        task = asyncio.Task(work, loop=self, name=name, context=context)
        process = _PROCESS.get(None) if context is None else context[_PROCESS]
        process.tasks.add(task)
        return task

    def get_debug(self):
        return False

    def is_running(self):
        return True

    def is_closed(self):
        return self._is_closed

    def call_exception_handler(self, context):
        self.troubles.append(context)

    def default_exception_handler(self, context):
        self.troubles.append(context)

    async def shutdown_asyncgens(self):
        pass

    # -- running --------------------------------------------------------------------------------

    def run(self, main, limit_s):
        """Runs a coroutine in a process of its own, to its end.

        Raises:
            Stuck: It has not ended when there was nothing to do any more, or after so much virtual time.
        """
        end_s = self.now_s + limit_s
        asyncio._set_running_loop(self)
        try:
            task = self.spawn(self.new_process("world"), main, "world")
            while not task.done():
                if not self._busy and not self._jump():
                    raise Stuck("nobody has anything to do, and the run has not ended")
                if self.now_s > end_s:
                    raise Stuck(f"the run has not ended within {limit_s:g} s")
                self._step()
            return task.result()
        finally:
            self._finish()
            asyncio._set_running_loop(None)

    def _line_up(self, handle):
        process = handle.process
        if not process.is_alive:
            return
        if not process.ready and self.now_s >= process.held_until_s:
            self._busy.append(process)
        process.ready.append(handle)

    def _jump(self):
        """Goes on to the next timer; returns whether there is one."""
        while self._timers:
            when_s, _, handle = self._timers[0]
            if handle.is_cancelled or not handle.process.is_alive:
                heapq.heappop(self._timers)
                continue
            self.now_s = max(self.now_s, when_s)
            self._wake()
            return True
        return False

    def _wake(self):
        while self._timers and self._timers[0][0] <= self.now_s:
            handle = heapq.heappop(self._timers)[2]
            if not handle.is_cancelled:
                self._line_up(handle)

    def _step(self):
        if not self._busy:
            return
        place = int(self.random.random() * len(self._busy)) if len(self._busy) > 1 else 0
        process = self._busy[place]
        handle = process.ready.popleft()
        if not process.ready:
            self._busy[place] = self._busy[-1]
            self._busy.pop()
        if handle.is_cancelled:
            return
        self.step_count += 1
        self.now_s += STEP_S
        self.trace = (self.trace * 1_000_003 + process.number + int(self.now_s * 1e6)) & 0xFFFF_FFFF_FFFF
        try:
            handle.context.run(handle.callback, *handle.arguments)
        except Exception as error:  # noqa: BLE001 -- told, as a loop does
            self.call_exception_handler({"message": "a callback failed", "exception": error})
        if self._timers and self._timers[0][0] <= self.now_s:
            self._wake()

    def _finish(self):
        """Has all tasks end, those of the dead too, so that none is left behind."""
        troubles, self.troubles = self.troubles, []
        for process in self._processes:
            process.is_alive, process.held_until_s = True, 0.0
        self._busy = [process for process in self._processes if process.ready]
        for _ in range(20):
            tasks = [task for process in self._processes for task in process.tasks if not task.done()]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self._busy = [process for process in self._processes if process.ready]
            for _ in range(100_000):
                if not self._busy:
                    break
                self._step()
        self._is_closed = True
        self.troubles = troubles
