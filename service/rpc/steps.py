"""Step, StreamSteps, StepBatch and StreamBatches."""

import asyncio

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.driver import Driver
from service.engine.rows import Chunk, Reply
from service.rpc import codec
from service.rpc.batches import BatchCall, BatchLimits
from service.rpc.call import Call
from service.rpc.codec import Named
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import Functions
from service.rpc.streams import BatchStream, StepStream
from service.telemetry.rpc_metrics import RpcMetrics


class StepRpcs:
    """Implements the rpcs that step sessions.

    Args:
        engine: Applies chunks.
        calls: Knows the calls under way.
        limits: Bounds of chunks and batches.
    """

    def __init__(self, engine: Driver, calls: OpenCalls, limits: BatchLimits) -> None:
        self._engine = engine
        self._calls = calls
        self._limits = limits

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {
            "Step": self.step,
            "StreamSteps": self.stream_steps,
            "StepBatch": self.step_batch,
            "StreamBatches": self.stream_batches,
        }

    async def step(self, request: pb.StepRequest, call: Call) -> bytes:
        """Applies one chunk; the reply is encoded already."""
        if not request.HasField("chunk"):
            raise InvalidRequest("the request has no chunk", field="chunk")
        message = request.chunk
        named = Named(message.tag, message.session_id)
        call.session_id = named.session_id
        outcome: asyncio.Future[Reply | ServiceError] = asyncio.get_running_loop().create_future()

        def reply(_: Chunk, value: Reply | ServiceError) -> None:
            if not outcome.done():
                outcome.set_result(value)

        chunk = codec.to_chunk(
            message,
            reply,
            call.caller,
            max_tokens=self._limits.max_tokens,
            deadline_s=call.deadline_s,
        )
        del request, message  # with whatever they have beside the chunk
        call.share.take(0, codec.size_of(chunk))
        if call.span is not None:
            chunk.request = call.span.stages
        try:
            self._engine.submit(chunk)
            result = await outcome
        finally:
            chunk.is_cancelled = True  # if the caller left before the chunk ran
        if isinstance(result, ServiceError):
            raise result
        return codec.encode_reply(named, result, call.caller)

    async def stream_steps(self, call: Call, metrics: RpcMetrics) -> None:
        """Applies chunks as they come."""
        await StepStream(
            self._engine, call, self._calls, metrics, max_tokens=self._limits.max_tokens
        ).serve()

    async def step_batch(self, request: pb.StepBatchRequest, call: Call) -> bytes:
        """Applies rows; the reply is encoded already."""
        if not request.HasField("batch"):
            raise InvalidRequest("the request has no batch", field="batch")
        call.row_count = len(request.batch.session_ids)
        done = asyncio.Event()
        rows = BatchCall(
            request.batch,
            lambda _: done.set(),
            call.caller.tenant,
            self._limits,
            deadline_s=call.deadline_s,
        )
        del request
        call.share.take(rows.row_count - 1, rows.size_bytes)
        if call.span is not None:
            rows.trace(call.span.stages)
        try:
            rows.submit(self._engine)
            await done.wait()
        finally:
            rows.cancel()  # if the caller left before the rows ran
        call.rows_failed(rows.errors)
        return rows.reply()

    async def stream_batches(self, call: Call, metrics: RpcMetrics) -> None:
        """Applies rows as they come."""
        await BatchStream(self._engine, call, self._calls, metrics, limits=self._limits).serve()
