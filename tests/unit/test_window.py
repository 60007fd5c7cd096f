"""When a batch waits for more."""

import asyncio
import math
import time

import pytest

from service.engine import window
from service.engine.core import Core
from service.engine.limits import EngineLimits
from service.engine.window import RETURN_S, SAMPLE_S, Window
from tests.support.fakes import AccumulatorModel, FakeModels
from tests.unit.test_core import submit


def busy(share=1.0):
    waits = Window()
    sample(waits, 100.0, 50.0)
    sample(waits, 100.0 + 2 * SAMPLE_S, 50.0 + 2 * share * SAMPLE_S)
    return waits


def sample(waits, now_s, busy_s):
    waits.busy_s = lambda: busy_s
    waits.sample(now_s)


def test_a_busy_loop_waits_for_a_session_answered_a_moment_ago():
    waits = busy()
    assert not waits.expects_more(101.0)
    waits.answered((b"a",), 101.0)
    assert waits.expects_more(101.0 + RETURN_S / 2)
    assert not waits.expects_more(101.0 + 2 * RETURN_S)


def test_a_loop_with_time_to_spare_never_waits():
    waits = busy(share=0.5)
    waits.answered((b"a",), 101.0)
    assert not waits.expects_more(101.0)


def test_a_session_that_came_back_is_not_waited_for():
    waits = busy()
    waits.answered((b"a",), 101.0)
    waits.came(b"a")
    assert not waits.expects_more(101.0)


def test_only_the_last_answer_of_a_session_counts():
    waits = busy()
    waits.answered((b"a",), 101.0)
    waits.answered((b"b",), 101.0 + RETURN_S / 2)
    waits.answered((b"a",), 101.0 + RETURN_S)
    assert waits.expects_more(101.0 + 1.2 * RETURN_S)
    waits.came(b"a")
    assert waits.expects_more(101.0 + 1.2 * RETURN_S)
    assert not waits.expects_more(101.0 + 1.6 * RETURN_S)


def test_the_share_is_taken_over_a_stretch():
    waits = busy()
    sample(waits, 100.0 + 2.5 * SAMPLE_S, 50.0 + 2 * SAMPLE_S)  # too short to say anything
    waits.answered((b"a",), 101.0)
    assert waits.expects_more(101.0)
    sample(waits, 101.0, 50.0 + 2 * SAMPLE_S)
    assert not waits.expects_more(101.0)


def test_what_is_old_is_forgotten_while_nobody_asks():
    waits = Window()
    for number in range(1000):
        waits.answered((b"%d" % number,), number * 2 * RETURN_S)
    assert len(waits._answered_s) == 1


@pytest.fixture
def core():
    """A core of which two chunks fill a batch, and one waits."""
    core = Core(FakeModels(AccumulatorModel()), EngineLimits(max_batch=2))
    submit(core, "first", [])
    return core


async def gather(waits, core, turn=lambda: None):
    """Gathers, and takes turns meanwhile; returns how many."""
    count = 0

    async def take_turns():
        nonlocal count
        while True:
            count += 1
            turn()
            await asyncio.sleep(0)

    taking = asyncio.create_task(take_turns())
    now_s = time.monotonic()
    waits.answered((b"a",), now_s)
    try:
        async with asyncio.timeout(5):
            await waits.gather(core, now_s)
    finally:
        taking.cancel()
    return count


@pytest.fixture
def patience(monkeypatch):
    """Answered sessions are expected back for ever, and a batch may wait for as long."""
    monkeypatch.setattr(window, "MAX_WAIT_S", math.inf)
    monkeypatch.setattr(window, "RETURN_S", math.inf)


async def test_a_batch_waits_until_it_is_full(core, patience):
    waits = busy()

    def come():
        waits.came(b"second")
        if not core.is_full:
            submit(core, "second", [])

    assert await gather(waits, core, come) > 0
    assert core.is_full
    assert await gather(waits, core) == 0


async def test_a_batch_goes_when_nobody_comes_for_a_moment(core, patience):
    assert await gather(busy(), core) > 0


async def test_a_batch_goes_after_so_long_though_others_come(core, patience, monkeypatch):
    monkeypatch.setattr(window, "MAX_WAIT_S", 0.0)
    waits = busy()
    assert await gather(waits, core, lambda: waits.came(b"second")) > 0
    assert not core.is_full


async def test_a_loop_with_time_to_spare_gives_up_no_turn(core, patience):
    assert await gather(busy(share=0.5), core) == 0


def spin(cpu_s):
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass


def test_time_on_a_core_is_busy():
    waits = Window()
    before_s = waits.busy_s()
    spin(0.05)
    assert waits.busy_s() - before_s > 0.04  # the kernel counts in ticks of a few milliseconds
    waits.close()


def test_without_the_kernels_count_it_is_cpu_time(monkeypatch):
    monkeypatch.setattr(window, "_SCHEDSTAT", "/nowhere")
    waits = Window()
    before_s, cpu_s = waits.busy_s(), time.thread_time()
    spin(0.01)
    assert waits.busy_s() - before_s <= time.thread_time() - cpu_s + 0.001
    waits.close()
