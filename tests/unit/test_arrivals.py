"""Whose message is received, and who loses the turn."""

import asyncio

import pytest

from holdfast.errors import DeadlinePassed, Overloaded
from service.engine.admission import Admission, Bounds
from service.rpc.arrivals import GRACE_S
from service.rpc.call import Call
from service.rpc.credentials import NOBODY
from service.rpc.memory_guard import MemoryGuard
from service.rpc.open_calls import OpenCalls

MESSAGE = b"message"


class Context:
    """A call whose message comes when the test says so."""

    def __init__(self):
        self.has_come = asyncio.Event()
        self.is_read = False

    async def read(self):
        self.is_read = True
        await self.has_come.wait()
        return MESSAGE


@pytest.fixture
async def calls():
    return OpenCalls(Admission(Bounds(chunks=100)), max_call_s=60, max_stall_s=60, max_age_s=0, places=2)


async def begin(calls, tenant):
    """Begins a call; returns its context and its task."""
    context = Context()

    async def serve():
        call = Call("Step", context)
        call.caller = NOBODY._replace(tenant=tenant)
        return await calls.receive(call)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    return context, task


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def now_s():
    return asyncio.get_running_loop().time()


async def test_a_message_is_received_in_turn(calls):
    first, second, third = [await begin(calls, "a") for _ in range(3)]
    assert [context.is_read for context, _ in (first, second, third)] == [True, True, False]
    first[0].has_come.set()
    third[0].has_come.set()
    assert await first[1] == await third[1] == MESSAGE
    assert not second[1].done()
    second[1].cancel()


async def test_who_takes_long_loses_the_turn_once_somebody_waits(calls):
    slow = [await begin(calls, "a") for _ in range(2)]
    calls.sweep(now_s() + GRACE_S)
    await settle()
    assert not any(task.done() for _, task in slow)
    waiting = await begin(calls, "b")
    calls.sweep(now_s() + GRACE_S)
    with pytest.raises(Overloaded, match="other calls waited"):
        await slow[0][1]
    waiting[0].has_come.set()
    assert await waiting[1] == MESSAGE
    assert not slow[1][1].done()
    slow[1][1].cancel()


async def test_a_free_place_goes_to_the_tenant_that_has_the_fewest(calls):
    slow = [await begin(calls, "a") for _ in range(2)]
    _ = [await begin(calls, "a") for _ in range(5)]
    other = await begin(calls, "b")
    slow[0][0].has_come.set()
    await settle()
    assert other[0].is_read


async def test_those_that_leave_while_they_wait_take_no_turn(calls):
    slow = [await begin(calls, "a") for _ in range(2)]
    gone, stays = await begin(calls, "b"), await begin(calls, "c")
    gone[1].cancel()
    await settle()
    slow[0][0].has_come.set()
    slow[1][0].has_come.set()
    await settle()
    stays[0].has_come.set()
    assert await stays[1] == MESSAGE
    await settle()
    assert calls.admission.held.chunks == calls.admission.held.size_bytes == 0
    again = [await begin(calls, "a") for _ in range(2)]
    assert all(context.is_read for context, _ in again)


async def test_a_message_has_a_time_limit_whatever_the_deadline(calls):
    _, task = await begin(calls, "a")
    calls.sweep(now_s() + 60)
    with pytest.raises(DeadlinePassed, match="message did not come within 60 s"):
        await task


async def test_calls_are_counted_before_their_message_has_come():
    calls = OpenCalls(Admission(Bounds(chunks=2, share=1)), max_call_s=60, max_stall_s=60, max_age_s=0)
    _ = [await begin(calls, "a") for _ in range(2)]
    context, task = await begin(calls, "a")
    with pytest.raises(Overloaded):
        await task
    assert not context.is_read


async def test_while_memory_is_short_calls_are_refused_and_those_that_withhold_are_ended(calls):
    resident = [100]
    guard = MemoryGuard(100, calls, lambda: resident[0])
    _, silent = await begin(calls, "a")
    resident[0] = 101
    guard.look(now_s() + GRACE_S)
    with pytest.raises(Overloaded, match="short of memory"):
        await silent
    with pytest.raises(Overloaded, match="short of memory"):
        await (await begin(calls, "a"))[1]
    resident[0] = 100
    guard.look(now_s())
    assert guard.shortage == ""
    context, task = await begin(calls, "a")
    context.has_come.set()
    assert await task == MESSAGE
