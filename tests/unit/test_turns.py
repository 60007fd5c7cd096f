"""Whose turn it is, and how much those who fail may take."""

import asyncio

import pytest

from service.engine.allowance import AT_ONCE_S, SHARE, Allowance
from service.engine.turns import Turns


async def take_turns(turns, names):
    """Lets everybody wait, a tenant being the first letter; returns who had his turn, in order."""
    had = []

    async def have(name):
        async with turns.turn(name[:1].encode()):
            had.append(name)
            await asyncio.sleep(0)

    async with turns.turn(b"first"):
        tasks = [asyncio.create_task(have(name)) for name in names]
        await asyncio.sleep(0)
        assert not had
    await asyncio.gather(*tasks)
    return had


async def test_tenants_have_turns_however_many_of_one_wait():
    names = [f"a{number}" for number in range(5)] + ["b0", "b1", "c0"]
    assert await take_turns(Turns(1), names) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


async def test_as_many_as_may_have_their_turn_at_once():
    turns = Turns(2)
    async with turns.turn(b"a"), turns.turn(b"a"):
        waiting = asyncio.create_task(turns.turn(b"a").__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


@pytest.mark.parametrize("is_given", [False, True])
async def test_who_goes_while_waiting_takes_no_turn_along(is_given):
    turns = Turns(1)
    async with turns.turn(b"a"):
        gone = asyncio.create_task(turns.turn(b"a").__aenter__())
        await asyncio.sleep(0)
        if not is_given:
            gone.cancel()
    gone.cancel()  # where it has just been given the turn
    with pytest.raises(asyncio.CancelledError):
        await gone
    async with asyncio.timeout(10), turns.turn(b"b"):
        pass


def test_what_fails_may_take_a_moment_at_once_and_then_its_share():
    allowance, now_s, taken_s = Allowance(), 1000.0, 0.0
    while not allowance.pause_s(now_s) and taken_s < 1.0:
        allowance.take(0.001, now_s)
        taken_s += 0.001
    assert taken_s == pytest.approx(AT_ONCE_S, abs=0.002)
    for _ in range(1000):
        now_s += allowance.pause_s(now_s)
        allowance.take(0.001, now_s)
    assert 1.0 / (now_s - 1000.0) == pytest.approx(SHARE, rel=0.05)
    assert allowance.pause_s(now_s + 1.0) == 0
