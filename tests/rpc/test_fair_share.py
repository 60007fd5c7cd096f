"""Two clients of two tenants on one server: one floods, the other is served. In one process, with a store
that answers when the test says so."""

import asyncio
import time

import grpc
import grpc.aio
import pytest

from holdfast.client.status import from_rpc, from_status
from holdfast.errors import DeadlinePassed
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.engine.admission import Admission, Bounds
from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from service.rpc.access import Access
from service.rpc.batches import BatchLimits
from service.rpc.call import Call
from service.rpc.codec import key_of
from service.rpc.credentials import ANYBODY
from service.rpc.gate import Gate, Rpc
from service.rpc.grpc_server import GrpcServer
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import SERVICE_NAME, build_rpcs
from service.rpc.steps import StepRpcs
from service.rpc.streams import StepStream
from service.telemetry.metrics import Metrics
from tests.support.fakes import AccumulatorModel, CountingObserver, FakeModels, MemoryStore, open_session
from tests.support.waiting import wait_for

BOUND = 100
SHARE = 80
"""What one tenant may have under way."""
FLOOD = 200
"""Chunks, all of which are read: the replies to those refused wait for those before them."""


class GatedStore(MemoryStore):
    """Answers nothing while the gate is shut."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    async def load(self, keys):
        self.asked.set()
        await self.gate.wait()
        return await super().load(keys)


class Server:
    """Streams over a real socket; the tenant is what the client says, as a credential would."""

    def __init__(self, max_call_s=60.0):
        self.store = GatedStore()
        self.observer = CountingObserver()
        self.admission = Admission(Bounds(streams=10, chunks=BOUND), self.observer.refused)
        self.calls = OpenCalls(self.admission, max_call_s=max_call_s, max_stall_s=60, max_age_s=0)
        models = FakeModels(AccumulatorModel())
        self._engine = Driver(models, self.store, self.observer.count, EngineLimits())

    def open(self, tenant, session_id):
        """Stores a session as OpenSession leaves it."""
        open_session(self.store, key_of(tenant, session_id).decode())

    async def __aenter__(self):
        self._engine.start()
        access = Access(None, asks_certificates=False)
        limits = BatchLimits([], max_tokens=64, max_rows=8)
        steps = StepRpcs(self._engine, self.calls, limits).rpcs()
        rpcs = build_rpcs(steps, self.calls, access, Metrics().rpc)
        handler = grpc.stream_stream_rpc_method_handler(self._stream_steps)
        gate = Gate(self.observer.refused)
        gate.add(SERVICE_NAME, rpcs | {"StreamSteps": Rpc((), lambda _: handler)}, access)
        self._grpc = GrpcServer([], gate)
        self.address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        await self._grpc.start()
        return self

    async def __aexit__(self, *_):
        self.store.gate.set()
        await self._grpc.stop(0)
        await self._engine.stop()

    async def _stream_steps(self, _, context):
        tenant = dict(context.invocation_metadata())["tenant"]
        call = Call("StreamSteps", context)
        call.caller = ANYBODY._replace(tenant=tenant)
        metrics = Metrics().rpc("StreamSteps")
        await StepStream(self._engine, call, self.calls, metrics, max_tokens=64).serve()


async def send(call, session_id, count):
    for position in range(count):
        chunk = pb.Chunk(
            session_id=session_id,
            model=pb.ModelRef(name="sum"),
            tokens=pb.Tokens(text=b"\x01"),
            position=position,
            tag=position,
        )
        await call.write(pb.StreamStepsRequest(chunk=chunk))


@pytest.fixture
async def server():
    async with Server() as server:
        yield server


async def test_a_tenant_that_floods_leaves_room_for_another(server):
    async with (
        grpc.aio.insecure_channel(server.address, [("tenant", 1)]) as one,
        grpc.aio.insecure_channel(server.address, [("tenant", 2)]) as two,
    ):
        server.open("a", "flood")
        server.open("b", "served")
        flood = StreamingInferenceServiceStub(one).StreamSteps(metadata=(("tenant", "a"),), timeout=30)
        await send(flood, "flood", FLOOD)
        refusals = server.observer.reasons
        await asyncio.to_thread(wait_for, lambda: refusals["OVERLOADED"] == FLOOD - SHARE, 10)

        served = StreamingInferenceServiceStub(two).StreamSteps(metadata=(("tenant", "b"),), timeout=30)
        await send(served, "served", 10)
        await asyncio.sleep(0)
        server.store.gate.set()
        for count in range(1, 11):
            assert (await served.read()).result.position == count
        for count in range(1, SHARE + 1):
            assert (await flood.read()).result.position == count
        refused = [(await flood.read()).error for _ in range(FLOOD - SHARE)]
        errors = [from_status(error.status) for error in refused]
        assert {error.reason for error in errors} == {"OVERLOADED"}
        assert all(0 < error.retry_after_s <= 0.2 for error in errors)
        assert [error.tag for error in refused] == list(range(SHARE, FLOOD))
        await flood.done_writing()
        await served.done_writing()
        assert await flood.read() is await served.read() is grpc.aio.EOF
    assert server.admission.held.chunks == server.admission.held.size_bytes == 0


async def test_a_chunk_that_waits_longer_than_the_cap_is_answered_before_it_runs():
    async with Server(max_call_s=0.2) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = StreamingInferenceServiceStub(channel).StreamSteps(metadata=(("tenant", "a"),), timeout=30)
        server.open("a", "late")
        await send(call, "late", 3)
        await asyncio.sleep(0.5)
        server.store.gate.set()
        for tag in range(3):
            error = (await call.read()).error
            assert (error.tag, from_status(error.status).reason) == (tag, "DEADLINE_PASSED")
        await send(call, "late", 1)
        assert (await call.read()).result.position == 1
        call.cancel()


@pytest.fixture
async def waiting():
    """A server that has one call under way for as long as its store answers nothing; begins that call."""
    async with Server(max_call_s=0.2) as server, grpc.aio.insecure_channel(server.address) as channel:
        server.open(ANYBODY.tenant, "s")
        step = StreamingInferenceServiceStub(channel).Step
        chunk = pb.Chunk(
            session_id="s", model=pb.ModelRef(name="sum"), tokens=pb.Tokens(text=b"x"), position=0
        )

        async def begin(timeout):
            call = step(pb.StepRequest(chunk=chunk), timeout=timeout)
            await asyncio.wait_for(server.store.asked.wait(), 20)
            return call

        yield server, begin
    assert server.admission.held.chunks == 0


async def test_a_call_without_a_deadline_is_ended(waiting):
    server, begin = waiting
    call = await begin(None)
    server.calls.sweep(time.monotonic() + 3600)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 20)
    assert type(from_rpc(caught.value)) is DeadlinePassed
    assert "0.2 s" in caught.value.details()
    server.store.gate.set()
    assert (await (await begin(None))).result.position == 1


async def test_a_call_with_a_deadline_may_take_as_long_as_that(waiting):
    server, begin = waiting
    call = await begin(30)
    server.calls.sweep(time.monotonic() + 3600)
    server.store.gate.set()
    assert (await asyncio.wait_for(call, 20)).result.position == 1
