"""A client that sends and does not read is held back, and gets every reply once it reads."""

import asyncio
import re

import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.rpc.conftest import MODEL
from tests.support.opening import open_sessions_async
from tests.support.server import get

CHUNKS = 1500
TOKENS = 60  # 60 KiB of logits, near the largest reply there is


def _applied(server):
    return float(
        re.search(r"^holdfast_chunks_total (\S+)", get(server, "/metrics")[1], re.MULTILINE).group(1)
    )


async def _send_without_reading(call):
    for number in range(CHUNKS):
        chunk = pb.Chunk(
            session_id="slow-reader",
            model=pb.ModelRef(name=MODEL),
            tokens=pb.Tokens(text=b"x" * TOKENS),
            position=number * TOKENS,
            outputs=pb.OutputSelection(tensors=["logits"]),
        )
        await call.write(pb.StreamStepsRequest(chunk=chunk))
    await call.done_writing()


async def test_a_slow_reader_is_held_back_and_loses_nothing(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        await open_sessions_async(StreamingInferenceServiceStub(channel), ["slow-reader"])
        call = StreamingInferenceServiceStub(channel).StreamSteps(timeout=60)
        before = _applied(server)
        sender = asyncio.create_task(_send_without_reading(call))
        last, now = -1, 0
        while now != last or now == 0:  # until nothing more is applied
            await asyncio.sleep(0.5)
            last, now = now, _applied(server) - before
        assert now < CHUNKS / 2, "the server applied more than it could send, though nobody reads"
        for number in range(CHUNKS):
            reply = await call.read()
            assert reply.result.position == (number + 1) * TOKENS
        await sender
        assert await call.read() is grpc.aio.EOF
