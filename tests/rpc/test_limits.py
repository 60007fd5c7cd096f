"""Bounds as clients meet them: what is refused and how, and what ends by itself."""

import asyncio

import grpc
import grpc.aio
import pytest

from holdfast.client.status import from_rpc
from holdfast.errors import MessageTooLarge, Overloaded, ReplyTooLarge
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.rpc.conftest import MODEL
from tests.support.opening import open_sessions, open_sessions_async
from tests.support.server import ServerProcess, value
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-waiting", "10", "--max-streams", "5")
    with ServerProcess(tmp_path_factory.mktemp("limits") / "data", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def impatient_server(tmp_path_factory):
    flags = ("--max-stall-s", "1", "--keepalive-s", "1")
    with ServerProcess(tmp_path_factory.mktemp("impatient") / "data", *flags) as server:
        yield server


@pytest.fixture
async def stub(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield StreamingInferenceServiceStub(channel)


def chunk(session_id, text=b"x", **fields):
    return pb.Chunk(
        session_id=session_id, model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=text), **fields
    )


def batch(rows, tokens=1, **fields):
    ids = [f"row-{row}" for row in range(rows)]
    fields = {"session_ids": ids, "tokens_per_row": tokens, "text": b"x" * rows * tokens, **fields}
    return pb.StepBatchRequest(batch=pb.Batch(model=pb.ModelRef(name=MODEL), **fields))


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_overload_is_refused_with_a_pause_for_clients_and_for_grpc(server, stub):
    await open_sessions_async(stub, batch(8).batch.session_ids)
    refused = value(server, 'holdfast_errors_total{reason="OVERLOADED"}')
    status = await refusal(stub.StepBatch(batch(9)))
    error = from_rpc(status)
    assert (error.code, type(error)) == ("RESOURCE_EXHAUSTED", Overloaded)
    assert 0 < error.retry_after_s <= 0.2
    pushback = dict(status.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(pushback) == pytest.approx(error.retry_after_s * 1000, abs=1)
    assert value(server, 'holdfast_errors_total{reason="OVERLOADED"}') == refused + 1
    reply = await stub.StepBatch(batch(8))
    assert not reply.result.errors


async def test_a_chunk_too_many_on_a_stream_is_an_error_of_that_chunk(stub):
    await open_sessions_async(stub, batch(8).batch.session_ids)
    call = stub.StreamBatches(timeout=20)
    for rows in (9, 8):
        await call.write(pb.StreamBatchesRequest(batch=batch(rows).batch))
    assert (await call.read()).error.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    reply = await call.read()
    assert (len(reply.result.positions), list(reply.result.errors)) == (8, [])
    call.cancel()


async def test_a_stream_too_many_is_refused_and_one_that_ends_makes_room(server, stub):
    wait_for(lambda: value(server, "holdfast_streams") == 0, 10)
    await open_sessions_async(stub, [f"open-{number}" for number in range(5)])
    calls = [stub.StreamSteps(timeout=60) for _ in range(4)]
    for number, call in enumerate(calls):
        await call.write(pb.StreamStepsRequest(chunk=chunk(f"open-{number}")))
        assert (await call.read()).result.position
    error = from_rpc(await refusal(stub.StreamSteps(timeout=10).read()))
    assert type(error) is Overloaded
    assert "open streams" in str(error)
    await calls[0].done_writing()
    assert await calls[0].read() is grpc.aio.EOF
    another = stub.StreamSteps(timeout=20)
    await another.write(pb.StreamStepsRequest(chunk=chunk("open-4")))
    assert (await another.read()).result.position
    for call in (*calls, another):
        call.cancel()


async def test_the_largest_request_follows_from_the_models_and_the_error_names_it(stub):
    fits = chunk("large", b"x" * 500_000)
    assert from_rpc(await refusal(stub.Step(pb.StepRequest(chunk=fits)))).reason == "INVALID_REQUEST"
    over = chunk("large", b"x" * 20_000_000)
    error = from_rpc(await refusal(stub.Step(pb.StepRequest(chunk=over))))
    assert type(error) is MessageTooLarge
    _, limit = (
        int(word) for word in str(error).replace(")", "").replace("(", "").split() if word.isdigit()
    )
    assert 16_000_000 < limit < 18_000_000  # 16,384 tokens of sound-events, of 256 float32 each


async def test_batches_are_bounded_in_rows_and_in_tokens(stub):
    for request, field in (
        (batch(1025), "batch.session_ids"),
        (batch(33, 512), "batch.tokens_per_row"),
    ):
        error = from_rpc(await refusal(stub.StepBatch(request)))
        assert (error.reason, error.metadata["field"]) == ("INVALID_REQUEST", field)


async def test_a_reply_that_the_client_could_not_receive_is_refused_up_front(stub):
    logits = pb.OutputSelection(tensors=["logits"])
    error = from_rpc(await refusal(stub.StepBatch(batch(273, 60, outputs=logits))))
    assert type(error) is ReplyTooLarge
    assert str(16 << 20) in str(error)


def test_a_stream_whose_client_reads_nothing_is_ended_and_says_so(impatient_server):
    wait_for(lambda: value(impatient_server, "holdfast_streams") == 0, 10)
    logits = pb.OutputSelection(tensors=["logits"])
    requests = (
        pb.StreamStepsRequest(chunk=chunk("stalled", b"x" * 60, position=position, outputs=logits))
        for position in range(0, 60_000, 60)
    )
    with grpc.insecure_channel(impatient_server.address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        open_sessions(stub, ["stalled"])
        call = stub.StreamSteps(requests)
        wait_for(lambda: value(impatient_server, "holdfast_waiting_bytes") > 1 << 19, 20)
        wait_for(lambda: value(impatient_server, "holdfast_waiting_bytes") < 1 << 17, 20)  # one reply
        with pytest.raises(grpc.RpcError) as caught:
            list(call)  # what was written before, then the end
    error = from_rpc(caught.value)
    assert type(error) is Overloaded
    assert "nothing was read" in str(error)
    wait_for(lambda: value(impatient_server, "holdfast_streams") == 0, 20)


class Hole:
    """A TCP proxy that can stop forwarding without closing anything."""

    def __init__(self, server):
        self._target = server.address.rpartition(":")
        self.is_open = True

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._tasks = []
        self._writers = []
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def _forward(self, reader, writer):
        other_reader, other_writer = await asyncio.open_connection(self._target[0], int(self._target[2]))
        self._writers += [writer, other_writer]
        self._tasks += [
            asyncio.create_task(self._pump(reader, other_writer)),
            asyncio.create_task(self._pump(other_reader, writer)),
        ]

    async def _pump(self, reader, writer):
        while data := await reader.read(1 << 16):
            if self.is_open:
                writer.write(data)


async def test_streams_of_a_connection_that_has_died_without_a_word_are_let_go(impatient_server):
    wait_for(lambda: value(impatient_server, "holdfast_streams") == 0, 10)
    async with Hole(impatient_server) as hole, grpc.aio.insecure_channel(hole.address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        await open_sessions_async(stub, ["black-hole"])
        call = stub.StreamSteps()
        await call.write(pb.StreamStepsRequest(chunk=chunk("black-hole")))
        assert (await call.read()).result.position
        await asyncio.to_thread(wait_for, lambda: value(impatient_server, "holdfast_streams") == 1, 5)
        hole.is_open = False
        await asyncio.to_thread(wait_for, lambda: value(impatient_server, "holdfast_streams") == 0, 20)
        call.cancel()
