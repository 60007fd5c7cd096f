"""Callers that leave at any moment: no reply goes to another caller, and nothing is applied twice."""

import asyncio

import pytest

import holdfast
from tests.faults import LONG
from tests.faults.verdict import MODEL, assert_held, chunk, seeded
from tests.support.server import ServerProcess

CANCELLATIONS = 10_000 if LONG else 2_000
SESSIONS = 64

pytestmark = pytest.mark.faults


async def test_thousands_of_cancelled_calls_leave_no_reply_to_a_wrong_caller(tmp_path):
    rng = seeded()
    left = CANCELLATIONS
    replies = 0

    async def write(client, number):
        """Cancels calls at random moments, and sends each chunk until it has its reply."""
        nonlocal left, replies
        name, position = f"s{number}", 0
        await client.open_session(name, model=MODEL)
        while left > 0:
            text = rng.randbytes(rng.randint(1, 4))
            request = chunk(name, text, position, tag=rng.getrandbits(32))
            while left > 0:
                call = asyncio.create_task(
                    client._calls.call_once("Step", request, client._calls.deadline_s(10))
                )
                await asyncio.sleep(rng.uniform(0, 0.05) if rng.random() < 0.5 else 0)
                if call.cancel():
                    left -= 1
                result = (await asyncio.gather(call, return_exceptions=True))[0]
                if not isinstance(result, BaseException):
                    break
                assert isinstance(result, asyncio.CancelledError), result
            else:
                result = await client._calls.call_once("Step", request, client._calls.deadline_s(10))
            reply = result.result
            asked = (name, position + len(text), request.chunk.tag)
            assert (reply.session_id, reply.position, reply.tag) == asked
            replies += 1
            position += len(text)

    with ServerProcess(tmp_path / "data") as server:
        async with holdfast.AsyncClient(server.address, history=tmp_path / "history") as client:
            async with asyncio.timeout(120):
                await asyncio.gather(*(write(client, number) for number in range(SESSIONS)))
    assert replies >= SESSIONS
    total = assert_held(tmp_path / "history")
    assert total.errors["CANCELLEDERROR"] >= CANCELLATIONS
