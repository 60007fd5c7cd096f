"""The rpcs of holdfast.v1: each reads its request, asks engine or sessions, and writes its reply."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.driver import Driver
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Opening, OpenSession, Sessions, new_session_id
from service.model.protocol import Model
from service.model.reloading import ModelReloading
from service.model.repository import ModelRepository
from service.rpc import codec
from service.rpc.access import Access
from service.rpc.batches import ROW_BYTES, BatchCall, BatchLimits
from service.rpc.call import Call
from service.rpc.codec import Named
from service.rpc.credentials import Scope
from service.rpc.gate import Rpc
from service.rpc.generation import Generations
from service.rpc.handler import Handler
from service.rpc.model_message import contract_message
from service.rpc.open_calls import OpenCalls
from service.rpc.openings import given_states, opening_keys, opening_reply, state_of
from service.rpc.session_message import session_message
from service.rpc.streams import BatchStream, StepStream
from service.rpc.watching import Watching
from service.telemetry.rpc_metrics import RpcMetrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name

READS: tuple[Scope, ...] = ("step", "read-state")
"""Positions and models, which those who step need as well as those who look."""

RPC_SCOPES: dict[str, tuple[Scope, ...]] = {
    "OpenSession": ("step",),
    "OpenBatch": ("step",),
    "GetSession": READS,
    "DeleteSession": ("step",),
    "DeleteBatch": ("step",),
    "ListSessions": READS,
    "ForkSession": ("step",),
    "SaveCheckpoint": ("step",),
    "ListCheckpoints": READS,
    "DeleteCheckpoint": ("step",),
    "RestoreCheckpoint": ("step",),
    "ExportSession": ("read-state",),
    "ImportSession": ("step",),
    "WatchSession": ("read-state",),
    "ReleaseSession": ("admin",),
    "Step": ("step",),
    "StreamSteps": ("step",),
    "StepBatch": ("step",),
    "StreamBatches": ("step",),
    "Generate": ("step",),
    "ListModels": (*READS, "admin"),
    "GetModel": (*READS, "admin"),
    "ReloadModels": ("admin",),
}
"""Who may call what: one of the scopes is enough. An rpc that shows the state on request asks further."""


class Servicer:
    """Implements the rpcs.

    Args:
        engine: Applies chunks.
        sessions: Opens, reads, deletes and releases sessions.
        models: The models served.
        access: Ends calls whose credential is revoked.
        calls: Knows the calls under way.
        reloading: Loads models that have come since.
        watching: Serves watches.
        metrics_of: Gives what counts an rpc.
        tracing: Makes spans of the calls, if they are traced.
        max_chunk_tokens: Most tokens of a chunk.
        max_rows: Most rows of a batch.
        others: Rpcs that other files implement, by name.
    """

    def __init__(
        self,
        engine: Driver,
        sessions: Sessions,
        models: ModelRepository,
        access: Access,
        calls: OpenCalls,
        reloading: ModelReloading,
        watching: Watching,
        metrics_of: Callable[[str], RpcMetrics],
        tracing: "Tracing | None",
        *,
        max_chunk_tokens: int,
        max_rows: int,
        others: Mapping[str, Callable[..., Awaitable[Any]]] = MappingProxyType({}),
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._models = models
        self._access = access
        self._calls = calls
        self._reloading = reloading
        self._watching = watching
        self._metrics_of = metrics_of
        self._tracing = tracing
        self._others = others
        self._max_chunk_tokens = max_chunk_tokens
        self._batch_limits = BatchLimits(models, max_chunk_tokens, max_rows)
        self._generations = Generations(engine, sessions, models, calls, max_chunk_tokens)

    def rpcs(self) -> dict[str, Rpc]:
        """Returns every rpc of the contract."""
        functions: dict[str, Callable[..., Awaitable[Any]]] = {
            "OpenSession": self.open_session,
            "OpenBatch": self.open_batch,
            "GetSession": self.get_session,
            "DeleteSession": self.delete_session,
            "ReleaseSession": self.release_session,
            "Step": self.step,
            "StreamSteps": self.stream_steps,
            "StepBatch": self.step_batch,
            "StreamBatches": self.stream_batches,
            "WatchSession": self._watching.watch_session,
            "Generate": self._generations.generate,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
            "ReloadModels": self.reload_models,
            **self._others,
        }
        rpcs = {}
        for method in pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].methods:
            name, metrics = method.name, self._metrics_of(method.name)
            is_stream = method.client_streaming or method.server_streaming
            message_type = None if is_stream else getattr(pb, method.input_type.name)
            handler = Handler(
                name,
                message_type,
                functions[name],
                self._calls,
                self._access,
                metrics,
                self._tracing,
            )
            rpcs[name] = Rpc(RPC_SCOPES[name], handler.build, metrics)
        return rpcs

    async def open_session(self, request: pb.OpenSessionRequest, call: Call) -> pb.OpenSessionResponse:
        """Opens or resumes a session."""
        call.session_id = session_id = request.session_id or new_session_id()
        key = codec.key_of(call.caller.tenant, session_id)
        opening = Opening(
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            take_over=request.take_over,
            nonce=request.nonce,
            state=state_of(codec.to_arrays(request.initial_state, "initial_state")),
        )
        del request  # its tensors are many times as large as what was sent
        session = await self._sessions.open(key, opening)
        return pb.OpenSessionResponse(
            session=await self._session_message(session_id, key, session),
            resumed=session.is_resumed,
        )

    async def open_batch(self, request: pb.OpenBatchRequest, call: Call) -> pb.OpenBatchResponse:
        """Opens or resumes many sessions."""
        keys = opening_keys(request, call.caller.tenant, self._batch_limits.max_rows)
        opening = Opening(
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            nonce=request.nonce,
        )
        states = given_states(request)
        state_bytes = sum(array.nbytes for array in states.values())
        call.share.take(len(keys) - 1, ROW_BYTES * len(keys) + state_bytes)
        del request
        good = {row: key for row, key in enumerate(keys) if isinstance(key, bytes)}
        begins = [state_of(states, row) for row in good] if states else []
        opened = iter(await self._sessions.open_batch(list(good.values()), opening, begins))
        outcomes = [next(opened) if isinstance(key, bytes) else key for key in keys]
        call.rows_failed([outcome for outcome in outcomes if isinstance(outcome, ServiceError)])
        return opening_reply(outcomes)

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Reads a session."""
        call.session_id = request.session_id
        if request.include_state:
            call.caller.need("read-state", field="include_state")
        key = codec.key_of(call.caller.tenant, request.session_id)
        session = await self._sessions.read(key)
        state = []
        if request.include_state:
            state = codec.from_raw_state(session.record.state, session.model.contract)
        message = await self._session_message(request.session_id, key, session)
        return pb.GetSessionResponse(session=message, state=state)

    async def delete_session(
        self, request: pb.DeleteSessionRequest, call: Call
    ) -> pb.DeleteSessionResponse:
        """Deletes a session."""
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        position = await self._sessions.delete(key, request.incarnation)
        return pb.DeleteSessionResponse(position=position)

    async def release_session(
        self, request: pb.ReleaseSessionRequest, call: Call
    ) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held, or moves its record aside."""
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        released = await self._sessions.release(key, discard=request.discard)
        return pb.ReleaseSessionResponse(reason=released.reason, position=released.position)

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
            max_tokens=self._max_chunk_tokens,
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
            self._batch_limits,
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
        await BatchStream(self._engine, call, self._calls, metrics, limits=self._batch_limits).serve()

    async def stream_steps(self, call: Call, metrics: RpcMetrics) -> None:
        """Applies chunks as they come."""
        await StepStream(
            self._engine, call, self._calls, metrics, max_tokens=self._max_chunk_tokens
        ).serve()

    async def list_models(self, *_: Any) -> pb.ListModelsResponse:
        """Lists every model."""
        return pb.ListModelsResponse(models=[self._model_message(model) for model in self._models])

    async def get_model(self, request: pb.GetModelRequest, *_: Any) -> pb.GetModelResponse:
        """Describes one model."""
        if not request.model.name:
            raise InvalidRequest("model.name is empty", field="model.name")
        model = self._models.find(request.model.name, request.model.version)
        return pb.GetModelResponse(model=self._model_message(model))

    async def reload_models(self, *_: Any) -> pb.ReloadModelsResponse:
        """Looks for new model files now."""
        refused = await self._reloading.reload()
        return pb.ReloadModelsResponse(
            models=[pb.ModelRef(name=model.name, version=model.version) for model in self._models],
            refused=[str(error) for error in refused],
        )

    async def _session_message(self, session_id: str, key: bytes, session: OpenSession) -> pb.Session:
        expires_in_s = await self._sessions.expires_in_s(key)
        return session_message(session_id, session.record, session.model, expires_in_s, session.cursor)

    def _model_message(self, model: Model) -> pb.Model:
        message = pb.Model(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint.hex(),
            is_newest=model.version == self._models.newest_version(model.name),
            max_chunk_tokens=self._max_chunk_tokens,
        )
        message.MergeFrom(contract_message(model.contract))
        return message
