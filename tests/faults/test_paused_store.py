"""The store stands still (SIGSTOP): every call ends in time, nothing piles up, all go on afterwards."""

import asyncio
import os
import signal
import time

import grpc.aio
import pytest

import holdfast
from benchmarks.footprint import descriptor_count, resident_bytes
from holdfast.client.status import from_rpc, from_status
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.test_drain import request
from tests.faults.test_store import store_of
from tests.support.opening import open_at
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

MODEL = "python-source"
SESSIONS = 200
CALL_S = 10.0
SHORT_S = 0.5
LONG_S = 30.0
MARGIN_S = 10.0  # of a machine that is shared; a call that is not ended hangs for good

pytestmark = pytest.mark.faults


async def test_every_call_ends_by_its_deadline_while_the_store_is_paused(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data, "--max-call-s", str(CALL_S)) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = StreamingInferenceServiceStub(channel)
            names = [f"s{number}" for number in range(SESSIONS)]
            open_at(server.address, *names)
            assert await _round(stub, names, 0, LONG_S) == {"OK"}
            before = resident_bytes(server.pid), descriptor_count(server.pid)
            with store_of(data) as client:
                pid = client.info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                for _ in range(5):
                    codes = await _round(stub, names, 1, SHORT_S)
                    assert codes <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
                assert get(server, "/readyz")[0] == 503
                assert resident_bytes(server.pid) - before[0] < 32 << 20
            finally:
                os.kill(pid, signal.SIGCONT)
            await asyncio.to_thread(wait_for, lambda: get(server, "/readyz")[0] == 200, 10)
            assert await _round(stub, names, 1, LONG_S) == {"OK"}
            assert descriptor_count(server.pid) <= before[1] + 1
        with holdfast.Client(server.address) as client:
            assert {client.open_session(name).position for name in names} == {2}


async def _round(stub, names, position, deadline_s):
    """Sends a chunk of every session: with a deadline, without one, or over a stream; returns the codes."""
    ways = (_with_deadline, _without_deadline, _over_stream)
    calls = (ways[number % 3](stub, name, position, deadline_s) for number, name in enumerate(names))
    return set(await asyncio.gather(*calls))


async def _with_deadline(stub, name, position, deadline_s):
    step = pb.StepRequest(chunk=request(name, position).chunk)
    return await _code(stub.Step(step, timeout=deadline_s), deadline_s)


async def _without_deadline(stub, name, position, _):
    return await _code(stub.Step(pb.StepRequest(chunk=request(name, position).chunk)), CALL_S)


async def _over_stream(stub, name, position, _):
    begun_s = time.monotonic()
    call = stub.StreamSteps()
    await call.write(request(name, position))
    reply = await call.read()
    call.cancel()
    assert time.monotonic() - begun_s < CALL_S + MARGIN_S
    if reply.WhichOneof("outcome") == "result":
        return "OK"
    return from_status(reply.error.status).code


async def _code(call, limit_s):
    begun_s = time.monotonic()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code = from_rpc(error).code
    else:
        code = "OK"
    assert time.monotonic() - begun_s < limit_s + MARGIN_S
    return code
