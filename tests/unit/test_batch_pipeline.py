"""What becomes of batches under way when their stream ends: by a goodbye, by a break, while writing."""

import asyncio
import time
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from holdfast.client.batching import BatchPipeline
from holdfast.client.lifetime import Lifetime
from holdfast.errors import Draining, ServerUnavailable
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.status import to_trailers

GOODBYE = (
    grpc.StatusCode.UNAVAILABLE,
    to_trailers(Draining("leaving", metadata={"requests_read": "1", "requests_answered": "1"})),
)
BREAK = (grpc.StatusCode.UNAVAILABLE, ())
HIDDEN = (grpc.StatusCode.INTERNAL, ())


class Call:
    """A stream that answers so many batches and then ends; None answers all."""

    def __init__(self, answer_count=None, ending=None):
        self.requests = []
        self.left = answer_count
        self.ending = ending
        self.written = asyncio.Semaphore(0)

    async def write(self, request):
        self.requests.append(request.batch)
        self.written.release()

    async def read(self):
        await self.written.acquire()
        if self.left == 0:
            await asyncio.sleep(0)
            code, trailers = self.ending
            raise grpc.aio.AioRpcError(code, (), trailers, "it ended")
        if self.left is not None:
            self.left -= 1
        positions = [position + 1 for position in self.requests[0].positions] or [0]
        return pb.StreamBatchesResponse(result=pb.BatchResult(positions=positions))

    async def done_writing(self):
        self.cancel()

    async def code(self):
        return grpc.StatusCode.OK

    def cancel(self):
        self.written.release()
        self.left, self.ending = 0, BREAK


class Calls:
    """What a pipeline asks of the calls of its client."""

    metadata, history = (), None

    def __init__(self, stub, limit_s=10.0):
        self._stub, self._limit_s = stub, limit_s
        self.lifetime = Lifetime()
        self.suspected = []

    def next_stub(self):
        return self._stub

    def suspect(self, used):
        self.suspected.append(used)

    def deadline_s(self, _):
        return time.monotonic() + 10 * self._limit_s

    def attempt_deadline_s(self, attempt, deadline_s):
        return min(deadline_s, time.monotonic() + self._limit_s * 2**attempt)


async def run(streams, positions):
    """Submits three batches over calls that end; returns the outcomes."""
    turns = iter(streams)
    stub = SimpleNamespace(StreamBatches=lambda metadata: next(turns))
    async with BatchPipeline(Calls(stub), {"model": "m"}, 8) as batches:
        replies = [await batches.submit(["s"], b"x", positions) for _ in range(3)]
        return await asyncio.gather(*replies, return_exceptions=True)


def is_reply(outcome):
    return not isinstance(outcome, Exception)


@pytest.mark.parametrize("positions", [[0], None])
async def test_what_was_not_read_before_a_goodbye_goes_to_the_next_stream(positions):
    first, second = Call(1, GOODBYE), Call()
    assert all(map(is_reply, await run([first, second], positions)))
    assert len(second.requests) == 2


@pytest.mark.parametrize("positions", [[0], None])
async def test_a_break_fails_what_is_under_way(positions):
    outcomes = await run([Call(1, BREAK), Call()], positions)
    assert [is_reply(outcome) for outcome in outcomes] == [True, False, False]
    assert isinstance(outcomes[1], ServerUnavailable)


@pytest.mark.parametrize(("positions", "goes_on"), [([0], True), (None, False)])
async def test_an_end_that_hides_its_reason_is_gone_on_from_where_that_is_safe(positions, goes_on):
    outcomes = await run([Call(1, HIDDEN), Call()], positions)
    assert [is_reply(outcome) for outcome in outcomes] == [True, goes_on, goes_on]


async def test_a_stream_that_never_worked_is_not_begun_again_and_again():
    outcomes = await run([Call(0, HIDDEN), Call()], [0])
    assert not any(map(is_reply, outcomes))
