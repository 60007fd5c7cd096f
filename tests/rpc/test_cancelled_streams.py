"""Streams that are opened and cancelled at once, by the thousand: nothing of them stays."""

import asyncio
import contextlib

import grpc.aio

from benchmarks.footprint import descriptor_count, resident_bytes
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.test_drain import request
from tests.support.opening import open_sessions_async
from tests.support.server import value
from tests.support.waiting import wait_for

STREAMS = 10_000
AT_A_TIME = 50
GROWTH_BYTES = 40 << 20  # 4 KiB each; a stream that stays takes several times that


async def test_ten_thousand_streams_that_are_cancelled_leave_nothing_behind(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        await open_sessions_async(stub, ["after", *(f"c{number}" for number in range(AT_A_TIME))])
        await open_and_cancel(stub, STREAMS)  # the memory of those that are open together
        wait_for(lambda: value(server, "holdfast_streams") == 0, 20)
        before = resident_bytes(server.pid), descriptor_count(server.pid)
        await open_and_cancel(stub, STREAMS)
        wait_for(lambda: value(server, "holdfast_streams") == 0, 20)
        assert resident_bytes(server.pid) - before[0] < GROWTH_BYTES
        assert descriptor_count(server.pid) <= before[1] + 1
        assert value(server, "holdfast_waiting_bytes") == 0
        step = pb.StepRequest(chunk=request("after", 0).chunk)
        assert (await stub.Step(step, timeout=10)).result.position == 1


async def open_and_cancel(stub, count):
    async def one(number):
        call = stub.StreamSteps()
        if number % 2:
            with contextlib.suppress(grpc.aio.AioRpcError):  # gRPC refuses some before we see them
                await call.write(request(f"c{number % AT_A_TIME}", 0))
        call.cancel()

    for start in range(0, count, AT_A_TIME):
        await asyncio.gather(*(one(number) for number in range(start, start + AT_A_TIME)))
