"""Whose turn it is: in order, in time, and nobody keeps a turn that came too late."""

import asyncio

import pytest

from holdfast.client.lifetime import Lifetime
from holdfast.client.turn import Turn
from holdfast.errors import ClientClosed, SessionBusy


@pytest.fixture
async def lifetime():
    lifetime = Lifetime()
    lifetime.check()
    return lifetime


async def test_turns_come_in_order(lifetime):
    turn, came = Turn(lifetime), []

    async def use(name):
        await turn.take(name, 10)
        came.append(name)
        await asyncio.sleep(0)
        turn.release()

    await asyncio.gather(*(use(name) for name in "abcde"))
    assert came == list("abcde")


async def test_who_waits_in_vain_is_told_who_has_it(lifetime):
    turn = Turn(lifetime)
    await turn.take("the first", 10)
    with pytest.raises(SessionBusy, match="the first held the session"):
        await turn.take("the second", 0.01)
    turn.release()
    await turn.take("the third", 0.01)


@pytest.mark.parametrize("moment", range(6))
async def test_a_turn_that_comes_as_its_waiter_leaves_goes_to_the_next(lifetime, moment):
    turn = Turn(lifetime)
    await turn.take("the first", 10)
    leaving = asyncio.create_task(turn.take("the second", 10))
    staying = asyncio.create_task(turn.take("the third", 10))
    await asyncio.sleep(0.01)
    turn.release()
    for _ in range(moment):
        await asyncio.sleep(0)
    if leaving.cancel():
        await asyncio.gather(leaving, return_exceptions=True)
    else:
        turn.release()
    await asyncio.wait_for(staying, 5)


async def test_the_end_of_the_client_ends_the_waiting(lifetime):
    turn = Turn(lifetime)
    await turn.take("the first", 10)
    waiting = asyncio.create_task(turn.take("the second", None))
    await asyncio.sleep(0.01)
    lifetime.end()
    with pytest.raises(ClientClosed, match="nothing was sent"):
        await waiting
