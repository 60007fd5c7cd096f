"""Calls of threads on an event loop: what an interrupted caller did not get is taken back."""

import asyncio
import threading

import pytest

from holdfast.client.runner import Runner
from holdfast.errors import ClientClosed, WrongEventLoop


class Thread:
    """An event loop in a thread that may be told to interrupt its caller, before or after the call."""

    def __init__(self):
        self.interrupt = ""
        self.is_inherited = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if self.interrupt == "early":
            future.cancel()
            raise KeyboardInterrupt
        result = future.result(5)
        if self.interrupt == "late":
            future.cancel()
            raise KeyboardInterrupt
        return result

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def thread():
    return Thread()


@pytest.fixture
def runner(thread):
    runner = Runner(thread)
    yield runner
    thread.interrupt = ""
    runner.close(nothing)


async def nothing():
    return 7


def test_a_result_that_comes_with_an_interrupt_is_taken_back(thread, runner):
    taken = []
    assert runner.run(nothing(), taken.append) == 7
    assert taken == []
    thread.interrupt = "late"
    with pytest.raises(KeyboardInterrupt):
        runner.run(nothing(), taken.append)
    assert taken == [7]


def test_a_call_that_is_interrupted_has_no_result(thread, runner):
    taken = []

    async def wait():
        await asyncio.sleep(60)

    thread.interrupt = "early"
    with pytest.raises(KeyboardInterrupt):
        runner.run(wait(), taken.append)
    assert taken == []


def test_what_is_posted_to_a_closed_loop_is_nothing(runner):
    runner.close(nothing)
    runner.close(nothing)
    runner.post(lambda: pytest.fail("it ran"))
    with pytest.raises(ClientClosed):
        runner.run(nothing())


def test_the_loop_does_not_wait_for_itself(runner):
    async def inner():
        with pytest.raises(WrongEventLoop):
            runner.run(nothing())

    runner.run(inner())
