"""The loop of the client without asyncio: how its callers get out again, and how it ends."""

import asyncio
import gc
import inspect
import signal
import threading
import time

import pytest

from holdfast.client.loop_thread import LoopThread
from holdfast.errors import ClientClosed, WrongEventLoop
from tests.support.waiting import wait_for


@pytest.fixture
def thread():
    thread = LoopThread()
    yield thread
    thread.close()


async def give(value):
    return value


async def fail():
    raise LookupError("no such thing")


async def wait_long(cleaned=None):
    try:
        await asyncio.sleep(60)
    finally:
        if cleaned is not None:
            await asyncio.sleep(0.01)
            cleaned.set()


async def refuse_to_end():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


class Caller(threading.Thread):
    """Runs a coroutine in a thread of its own, and notes what came of it."""

    def __init__(self, thread, coroutine):
        super().__init__(daemon=True)
        self.loop_thread, self.coroutine, self.outcome = thread, coroutine, None
        self.begun = threading.Event()
        self.start()
        assert self.begun.wait(5)

    async def call(self):
        self.begun.set()
        await self.coroutine

    def run(self):
        try:
            self.outcome = self.loop_thread.run(self.call())
        except BaseException as error:  # noqa: BLE001 -- it is what is asked for
            self.outcome = error


def test_results_and_errors_come_back(thread):
    assert thread.run(give(3)) == 3
    with pytest.raises(LookupError):
        thread.run(fail())


def test_an_interrupt_comes_out_at_once_and_ends_the_call(thread):
    cleaned = threading.Event()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        started_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            thread.run(wait_long(cleaned))
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert time.monotonic() - started_s < 2
    assert cleaned.wait(2)
    assert thread.run(give(1)) == 1


def test_an_interrupt_is_not_held_up_by_a_call_that_does_not_end(thread):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            thread.run(refuse_to_end())
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert thread.run(give(1)) == 1


@pytest.mark.parametrize("is_asked", [False, True])
def test_an_interrupt_of_the_asking_for_a_call_leaves_it_to_the_loop(thread, monkeypatch, is_asked):
    """It comes before the loop is asked, or when the call has begun there: it is ended there, not here."""
    begun, ended_in = threading.Event(), []

    async def call():
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended_in.append(threading.current_thread().name)

    loop = thread._loop._loop
    ask = loop.call_soon_threadsafe

    def interrupted(callback, *arguments):
        monkeypatch.setattr(loop, "call_soon_threadsafe", ask)
        if is_asked:
            ask(callback, *arguments)
            assert begun.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    coroutine = call()
    with pytest.raises(KeyboardInterrupt):
        thread.run(coroutine)
    assert ended_in == ["holdfast"] * is_asked
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert not thread._loop._calls


def test_the_loop_does_not_wait_for_itself(thread):
    async def call_from_within():
        with pytest.raises(WrongEventLoop, match="own event loop"):
            thread.run(give(1))
        return "said"

    assert thread.run(asyncio.wait_for(call_from_within(), 5)) == "said"


def test_closing_ends_calls_of_other_threads_and_lets_them_clean_up():
    thread, cleaned = LoopThread(), threading.Event()
    caller = Caller(thread, wait_long(cleaned))
    thread.close()
    caller.join(2)
    assert isinstance(caller.outcome, ClientClosed)
    assert cleaned.is_set()
    assert not thread._loop._thread.is_alive()
    assert thread._loop._loop.is_closed()
    started_s = time.monotonic()
    with pytest.raises(ClientClosed):
        thread.run(give(1))
    assert time.monotonic() - started_s < 0.3


def test_closing_twice_and_from_many_threads_is_as_good_as_once():
    thread = LoopThread()
    caller = Caller(thread, wait_long())
    closers = [threading.Thread(target=thread.close) for _ in range(5)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(5)
    thread.close()
    caller.join(2)
    assert isinstance(caller.outcome, ClientClosed)
    assert not any(closer.is_alive() for closer in closers)


def test_callers_are_let_go_though_their_call_does_not_end():
    thread = LoopThread()
    caller = Caller(thread, refuse_to_end())
    started_s = time.monotonic()
    thread.close()
    caller.join(5)
    assert isinstance(caller.outcome, ClientClosed)
    assert time.monotonic() - started_s < 5


def test_callers_are_let_go_though_the_loop_is_held_up(monkeypatch):
    monkeypatch.setattr("holdfast.client.loop_thread.CLOSE_S", 0.2)

    async def hold_up():
        time.sleep(1.5)  # noqa: ASYNC251 -- as an iterator of a user may

    thread = LoopThread()
    caller = Caller(thread, hold_up())
    thread.close()
    caller.join(0.5)
    assert isinstance(caller.outcome, ClientClosed)
    thread._loop._thread.join(5)
    assert not thread._loop._thread.is_alive()


def test_what_the_calls_used_is_closed_after_them():
    order = []

    async def call():
        try:
            await asyncio.sleep(60)
        finally:
            order.append("call")

    async def farewell():
        order.append("farewell")

    thread = LoopThread(farewell)
    Caller(thread, call())
    thread.close()
    assert order == ["call", "farewell"]


def test_a_loop_that_nobody_refers_to_ends():
    thread = LoopThread()
    inner = thread._loop
    del thread
    gc.collect()
    inner._thread.join(2)
    assert not inner._thread.is_alive()
    assert inner._loop.is_closed()


def test_a_loop_may_be_dropped_or_closed_by_itself():
    """Where the collector runs a finaliser of a user, it may be in the loop's own thread."""
    thread, inners = LoopThread(), []

    async def drop(holder):
        holder.pop()
        gc.collect()
        await asyncio.sleep(60)

    class Owner:
        def __init__(self):
            self.thread = LoopThread()
            inners.append(self.thread._loop)

        def __del__(self):
            self.thread.close()

    Caller(thread, drop([Owner()]))
    wait_for(lambda: not inners[0]._thread.is_alive())
    inner = thread._loop
    inner._loop.call_soon_threadsafe(thread.close)
    inner._thread.join(5)
    assert not inner._thread.is_alive()


def test_what_cleans_up_runs_where_it_can(thread):
    cleaned = []

    async def clean(name):
        cleaned.append(name)

    async def within():
        thread.clean_up(clean("within"))

    thread.clean_up(clean("outside"))
    thread.run(within())
    wait_for(lambda: len(cleaned) == 2)
    thread.close()
    thread.clean_up(clean("after"))
    assert cleaned == ["outside", "within"]
