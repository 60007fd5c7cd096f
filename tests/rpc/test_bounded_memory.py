"""What callers can make a server hold. Each load once held far more; a neighbour is answered meanwhile."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

from benchmarks.footprint import resident_bytes
from holdfast.client.status import from_rpc
from holdfast.errors import Overloaded
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc import health
from tests.rpc.conftest import MODEL
from tests.support.http2 import Connection, message
from tests.support.opening import open_sessions
from tests.support.server import ServerProcess, value
from tests.support.waiting import wait_for

MIB = 1 << 20
SERVICE = "/holdfast.v1.StreamingInferenceService/"
WATCH = "/grpc.health.v1.Health/Watch"
LARGE = message(600_000)
"""A message near the limit of a server of these models; no request, but that is seen once it is whole."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-waiting-bytes", str(32 * MIB), "--max-stall-s", "1", "--max-call-s", "30")
    with ServerProcess(tmp_path_factory.mktemp("memory") / "data", *flags) as server:
        neighbour(server)
        yield server


def neighbour(server):
    """Makes a call of its own connection; returns how it was answered."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        try:
            StreamingInferenceServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=20)
        except grpc.RpcError as error:
            return from_rpc(error)


def refused(server):
    return value(server, 'holdfast_errors_total{reason="OVERLOADED"}')


async def test_streams_that_send_and_never_read_are_held_to_their_windows(server):
    before = resident_bytes(server.pid)
    async with grpc.aio.insecure_channel(server.address) as channel:
        senders = [asyncio.create_task(send_and_never_read(channel)) for _ in range(30)]
        await asyncio.wait(senders, timeout=3)
        assert await asyncio.to_thread(neighbour, server) is None
        held = resident_bytes(server.pid) - before
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    assert held < 64 * MIB


async def send_and_never_read(channel):
    call = StreamingInferenceServiceStub(channel).StreamSteps()
    chunk = pb.Chunk(session_id="absent", tokens=pb.Tokens(text=bytes(100_000)))
    while True:
        await call.write(pb.StreamStepsRequest(chunk=chunk))


def test_calls_that_withhold_the_end_of_their_message_take_turns_and_lose_them(server):
    before, refused_before = resident_bytes(server.pid), refused(server)
    with Connection(server.address) as connection:
        for _ in range(200):
            connection.send(connection.call(SERVICE + "Step"), LARGE[:-8], within_s=0.01)
        assert neighbour(server) is None
        assert resident_bytes(server.pid) - before < 40 * MIB
        wait_for(lambda: refused(server) > refused_before, 10)


def test_replies_that_nobody_reads_are_counted_and_given_up(server):
    ids = [f"unread-{row}" for row in range(64)]
    with grpc.insecure_channel(server.address) as channel:
        open_sessions(StreamingInferenceServiceStub(channel), ids)
    batch = pb.Batch(
        model=pb.ModelRef(name=MODEL),
        session_ids=ids,
        text=b"x" * len(ids),
        outputs=pb.OutputSelection(tensors=["logits"]),
    )
    request = message(pb.StepBatchRequest(batch=batch).SerializeToString())
    with Connection(server.address, window_bytes=0) as connection:
        for _ in range(20):
            connection.send(connection.call(SERVICE + "StepBatch"), request, ends=True)
        wait_for(lambda: value(server, "holdfast_waiting_bytes") > 2 * MIB, 10)
        assert neighbour(server) is None
        wait_for(lambda: value(server, "holdfast_waiting_bytes") == 0, 20)
        wait_for(lambda: len(connection.ended) == 20, 10)


def test_a_burst_of_calls_is_answered_or_refused_with_a_reason(server):
    def flood(connection):
        for _ in range(2000):
            connection.send(connection.call(SERVICE + "ListModels"), message(b""), ends=True)

    connections = [Connection(server.address, window_bytes=0) for _ in range(3)]
    with ThreadPoolExecutor(3) as floods:
        running = [floods.submit(flood, connection) for connection in connections]
        outcomes = []
        while not all(future.done() for future in running):
            outcomes.append(asyncio.run(neighbours(server, 20)))
        outcomes.append(asyncio.run(neighbours(server, 200)))
    for connection in connections:
        connection.__exit__()
    assert {type(error) for errors in outcomes for error in errors} <= {type(None), Overloaded}


async def neighbours(server, count):
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = StreamingInferenceServiceStub(channel)

        async def one():
            try:
                await stub.ListModels(pb.ListModelsRequest(), timeout=20)
            except grpc.aio.AioRpcError as error:
                return from_rpc(error)

        return await asyncio.gather(*(one() for _ in range(count)))


def test_a_health_watch_that_is_not_read_stops_nobody(server):
    with Connection(server.address, window_bytes=0) as connection:
        connection.send(connection.call(WATCH), message(b""), ends=True)
        assert neighbour(server) is None
        beats = value(server, "holdfast_event_loop_lag_seconds_count")
        wait_for(lambda: value(server, "holdfast_event_loop_lag_seconds_count") > beats + 3, 10)


def test_health_watches_are_bounded_and_leave_checks_alone(server):
    before = refused(server)
    with Connection(server.address) as connection:
        for _ in range(health.MAX_CALLS + 100):
            connection.send(connection.call(WATCH), message(b""), ends=True)
        wait_for(lambda: refused(server) >= before + 100, 10)
        check = connection.call("/grpc.health.v1.Health/Check")
        connection.send(check, message(b""), ends=True)
        wait_for(lambda: check in connection.ended, 10)
        assert refused(server) == before + 100


def test_streams_that_withhold_the_end_of_a_message_are_ended_where_memory_is_short(tmp_path):
    with ServerProcess(tmp_path / "data", "--max-memory-bytes", str(256 * MIB)) as server:
        assert neighbour(server) is None
        with Connection(server.address) as connection:
            for _ in range(400):
                connection.send(connection.call(SERVICE + "StreamSteps"), LARGE[:-8], within_s=0.01)
            wait_for(lambda: connection.ended, 20)
            wait_for(lambda: resident_bytes(server.pid) <= 256 * MIB, 20)
            wait_for(lambda: neighbour(server) is None, 10)
