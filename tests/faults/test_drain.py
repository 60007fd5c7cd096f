"""SIGTERM: what was read is answered, and every stream is told how far it came."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

import holdfast
from holdfast.client.status import from_rpc
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.test_store import health, step
from tests.faults.test_workers import is_gone, workers_of
from tests.support.opening import open_at
from tests.support.server import ServerProcess, get, value
from tests.support.waiting import wait_for

MODEL = "python-source"
STREAMS = 1000
CHUNKS = 6

pytestmark = pytest.mark.faults


def request(session_id, position, text=b"x"):
    chunk = pb.Chunk(
        session_id=session_id,
        model=pb.ModelRef(name=MODEL),
        tokens=pb.Tokens(text=text),
        position=position,
    )
    return pb.StreamStepsRequest(chunk=chunk)


async def write_and_read(stub, session_id, opened):
    """Sends chunks ahead, then reads to the end; returns replies and the error that ended the stream."""
    call = stub.StreamSteps(timeout=60)
    for position in range(CHUNKS):
        await call.write(request(session_id, position))
    count = (await call.read()).result.position
    opened.release()
    try:
        while True:
            reply = await call.read()
            assert reply.result.position == count + 1, reply
            count += 1
    except grpc.aio.AioRpcError as error:
        return count, from_rpc(error)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_drain_of_a_thousand_open_streams_loses_nothing(tmp_path, workers):
    server = ServerProcess(tmp_path / "data", "--workers", str(workers), "--drain-timeout-s", "30")
    channels = [grpc.aio.insecure_channel(server.address, [("channel", n)]) for n in range(8)]
    stubs = [StreamingInferenceServiceStub(channel) for channel in channels]
    opened = asyncio.Semaphore(0)
    names = [f"s{number}" for number in range(STREAMS)]
    open_at(server.address, *names)
    writers = [
        asyncio.create_task(write_and_read(stubs[number % 8], name, opened))
        for number, name in enumerate(names)
    ]
    for _ in range(STREAMS):
        await opened.acquire()
    assert await asyncio.to_thread(server.stop) == 0
    given = dict(zip(names, await asyncio.gather(*writers), strict=True))
    await asyncio.gather(*(channel.close() for channel in channels))
    counts = Counter(count for count, _ in given.values())
    print(f"replies per stream, and streams: {dict(sorted(counts.items()))}")
    for count, error in given.values():
        assert (error.code, error.reason) == ("UNAVAILABLE", "DRAINING"), error
        assert error.retry_after_s == 0
        assert error.metadata["requests_read"] == error.metadata["requests_answered"] == str(count)
    with ServerProcess(tmp_path / "data") as server, holdfast.Client(server.address) as client:
        stored = {name: client.open_session(name).position for name in names}
    assert stored == {name: count for name, (count, _) in given.items()}


async def test_a_stream_that_is_open_while_nothing_is_sent_ends_too(tmp_path):
    server = ServerProcess(tmp_path / "data", "--drain-timeout-s", "25")
    open_at(server.address, "s")
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = StreamingInferenceServiceStub(channel).StreamSteps(timeout=20)
        await call.write(request("s", 0))
        await call.read()
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        error = from_rpc(caught.value)
        assert (error.reason, error.metadata["requests_answered"]) == ("DRAINING", "1")
        assert await stopping == 0


async def test_calls_under_way_are_answered_and_new_ones_are_refused_while_draining(tmp_path):
    server = ServerProcess(tmp_path / "data", "--drain-timeout-s", "25")
    open_at(server.address, *(f"s{number}" for number in range(16)))
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        outcomes = []

        async def call_on(name):
            for position in range(100_000):
                chunk = request(name, position).chunk
                try:
                    reply = await stub.Step(pb.StepRequest(chunk=chunk), timeout=10)
                except grpc.aio.AioRpcError as error:
                    outcomes.append(from_rpc(error))
                    return position
                assert reply.result.position == position + 1
            return -1

        callers = [asyncio.create_task(call_on(f"s{number}")) for number in range(16)]
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(server.stop) == 0
        positions = await asyncio.gather(*callers)
    assert {error.reason for error in outcomes} == {"DRAINING"}
    with ServerProcess(tmp_path / "data") as server, holdfast.Client(server.address) as client:
        assert [client.open_session(f"s{number}").position for number in range(16)] == positions


def test_the_pause_serves_while_no_longer_ready_and_a_second_signal_ends_it_at_once(tmp_path):
    server = ServerProcess(tmp_path / "data", "--drain-pause-s", "20", "--drain-timeout-s", "25")
    open_at(server.address, "s")
    try:
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: get(server, "/readyz") == (503, "draining\n"), 5)
        wait_for(lambda: health(server.address) == "NOT_SERVING", 5)
        assert step(server.address, "s", b"abc", 0).position == 3
        os.kill(server.pid, signal.SIGTERM)
        assert server._process.wait(10) == -signal.SIGTERM
    finally:
        server.kill()
    with ServerProcess(tmp_path / "data") as server:
        assert step(server.address, "s", b"d", 3).position == 4


def test_a_chunk_that_a_drain_cannot_wait_for_is_given_up_and_can_be_sent_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_FAILPOINTS", "before_commit=delay:600")
    server = ServerProcess(tmp_path / "data", "--drain-timeout-s", "2", "--allow-failpoints")
    open_at(server.address, "s")
    with ThreadPoolExecutor() as threads:
        caller = threads.submit(step, server.address, "s", b"abc", 0)
        wait_for(lambda: value(server, "holdfast_waiting_chunks") == 1, 5)
        assert server.stop() == 0
        assert caller.result().code == "UNAVAILABLE"
    monkeypatch.delenv("HOLDFAST_FAILPOINTS")
    with ServerProcess(tmp_path / "data") as server:
        assert step(server.address, "s", b"abc", 0).position == 3


def test_a_pause_longer_than_the_drain_is_refused():
    command = [
        sys.executable,
        "-c",
        "from service.command import main; main()",
        "serve",
        "--drain-pause-s",
        "11",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert "--drain-pause-s is longer than --drain-timeout-s" in result.stderr


def test_a_worker_that_is_stuck_is_replaced(tmp_path):
    flags = ("--workers", "2", "--stuck-worker-s", "3")
    with ServerProcess(tmp_path / "data", *flags) as server:
        stuck, other = workers_of(server)
        os.kill(stuck, signal.SIGSTOP)
        wait_for(lambda: is_gone(stuck), 20)
        wait_for(lambda: value(server, "holdfast_workers") == 2, 20)
        assert other in workers_of(server)
        assert get(server, "/livez")[0] == 200
        with holdfast.Client(server.address, timeout_s=20) as client:
            assert client.open_session("s", model=MODEL).step("abc").position == 3
