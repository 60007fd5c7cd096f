"""The rpcs of holdfast.v1: each reads its request, asks engine or sessions, and writes its reply."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from holdfast.errors import DeadlinePassed, InternalFailure, InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.admission import Share
from service.engine.driver import Driver
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Opening, OpenSession, Sessions, new_session_id
from service.model.contract import Contract
from service.model.protocol import Model
from service.model.reloading import ModelReloading
from service.model.repository import ModelRepository
from service.rpc import codec
from service.rpc.access import Access
from service.rpc.batches import ROW_BYTES, BatchCall, BatchLimits
from service.rpc.call import Call
from service.rpc.codec import Named
from service.rpc.credentials import Caller, Scope
from service.rpc.gate import Identify, Rpc, abort
from service.rpc.messages import parse
from service.rpc.open_calls import OpenCalls
from service.rpc.openings import given_states, opening_keys, opening_reply, state_of
from service.rpc.streams import BatchStream, StepStream
from service.store.record import Record
from service.telemetry.rpc_metrics import RpcMetrics, code_of

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name

Handler = Callable[[Any, Call, Caller, Share], Awaitable[Any]]
"""Serves a unary call: takes its message, the call, who calls and what it holds; returns the reply."""

Serve = Callable[[Call, Caller], Awaitable[Any]]
"""Serves a call of which no message was read; returns the reply, if there is to be one."""

READS: tuple[Scope, ...] = ("step", "read-state")
"""Positions and models, which those who step need as well as those who look."""

RPC_SCOPES: dict[str, tuple[Scope, ...]] = {
    "OpenSession": ("step",),
    "OpenBatch": ("step",),
    "GetSession": READS,
    "DeleteSession": ("step",),
    "ReleaseSession": ("admin",),
    "Step": ("step",),
    "StreamSteps": ("step",),
    "StepBatch": ("step",),
    "StreamBatches": ("step",),
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
        metrics_of: Gives what counts an rpc.
        max_chunk_tokens: Most tokens of a chunk.
        max_rows: Most rows of a batch.
    """

    def __init__(
        self,
        engine: Driver,
        sessions: Sessions,
        models: ModelRepository,
        access: Access,
        calls: OpenCalls,
        reloading: ModelReloading,
        metrics_of: Callable[[str], RpcMetrics],
        *,
        max_chunk_tokens: int,
        max_rows: int,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._models = models
        self._access = access
        self._calls = calls
        self._reloading = reloading
        self._metrics_of = metrics_of
        self._max_chunk_tokens = max_chunk_tokens
        self._batch_limits = BatchLimits(models, max_chunk_tokens, max_rows)

    def rpcs(self) -> dict[str, Rpc]:
        """Returns every rpc of the contract."""
        unary: dict[str, Handler] = {
            "OpenSession": self.open_session,
            "OpenBatch": self.open_batch,
            "GetSession": self.get_session,
            "DeleteSession": self.delete_session,
            "ReleaseSession": self.release_session,
            "Step": self.step,
            "StepBatch": self.step_batch,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
            "ReloadModels": self.reload_models,
        }
        streams: dict[str, Serve] = {"StreamSteps": self.stream_steps, "StreamBatches": self.stream_batches}
        service = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
        rpcs = {}
        for method in service.methods:
            if method.name in unary:
                serve = self._unary(unary[method.name], getattr(pb, method.input_type.name))
            else:
                serve = streams[method.name]
            observer = self._metrics_of(method.name)
            is_stream = method.client_streaming or method.server_streaming
            build = functools.partial(_handler, method.name, is_stream, serve, observer)
            rpcs[method.name] = Rpc(RPC_SCOPES[method.name], build, observer)
        return rpcs

    async def open_session(
        self, request: pb.OpenSessionRequest, _: Call, caller: Caller, __: Share
    ) -> pb.OpenSessionResponse:
        """Opens or resumes a session."""
        session_id = request.session_id or new_session_id()
        key = codec.key_of(caller.tenant, session_id)
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

    async def open_batch(
        self, request: pb.OpenBatchRequest, call: Call, caller: Caller, share: Share
    ) -> pb.OpenBatchResponse:
        """Opens or resumes many sessions."""
        keys = opening_keys(request, caller.tenant, self._batch_limits.max_rows)
        opening = Opening(
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            nonce=request.nonce,
        )
        states = given_states(request)
        state_bytes = sum(array.nbytes for array in states.values())
        share.take(len(keys) - 1, ROW_BYTES * len(keys) + state_bytes)
        del request
        good = {row: key for row, key in enumerate(keys) if isinstance(key, bytes)}
        begins = [state_of(states, row) for row in good] if states else []
        opened = iter(await self._sessions.open_batch(list(good.values()), opening, begins))
        outcomes = [next(opened) if isinstance(key, bytes) else key for key in keys]
        call.rows_failed([outcome for outcome in outcomes if isinstance(outcome, ServiceError)])
        return opening_reply(outcomes)

    async def get_session(
        self, request: pb.GetSessionRequest, _: Call, caller: Caller, __: Share
    ) -> pb.GetSessionResponse:
        """Reads a session."""
        if request.include_state:
            caller.need("read-state", field="include_state")
        key = codec.key_of(caller.tenant, request.session_id)
        session = await self._sessions.read(key)
        state = []
        if request.include_state:
            state = codec.from_raw_state(session.record.state, session.model.contract)
        message = await self._session_message(request.session_id, key, session)
        return pb.GetSessionResponse(session=message, state=state)

    async def delete_session(
        self, request: pb.DeleteSessionRequest, _: Call, caller: Caller, __: Share
    ) -> pb.DeleteSessionResponse:
        """Deletes a session."""
        key = codec.key_of(caller.tenant, request.session_id)
        position = await self._sessions.delete(key, request.incarnation)
        return pb.DeleteSessionResponse(position=position)

    async def release_session(
        self, request: pb.ReleaseSessionRequest, _: Call, caller: Caller, __: Share
    ) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held, or moves its record aside."""
        key = codec.key_of(caller.tenant, request.session_id)
        released = await self._sessions.release(key, discard=request.discard)
        return pb.ReleaseSessionResponse(reason=released.reason, position=released.position)

    async def step(self, request: pb.StepRequest, call: Call, caller: Caller, share: Share) -> bytes:
        """Applies one chunk; the reply is encoded already."""
        if not request.HasField("chunk"):
            raise InvalidRequest("the request has no chunk", field="chunk")
        outcome: asyncio.Future[Reply | ServiceError] = asyncio.get_running_loop().create_future()

        def reply(_: Chunk, value: Reply | ServiceError) -> None:
            if not outcome.done():
                outcome.set_result(value)

        chunk = codec.to_chunk(
            request.chunk,
            reply,
            caller,
            max_tokens=self._max_chunk_tokens,
            deadline_s=self._deadline_s(call),
        )
        named = Named(request.chunk.tag, request.chunk.session_id)
        del request  # with whatever it has beside the chunk
        share.take(0, codec.size_of(chunk))
        try:
            self._engine.submit(chunk)
            result = await outcome
        finally:
            chunk.is_cancelled = True  # if the caller left before the chunk ran
        if isinstance(result, ServiceError):
            raise result
        return codec.encode_reply(named, result, caller)

    async def step_batch(
        self, request: pb.StepBatchRequest, call: Call, caller: Caller, share: Share
    ) -> bytes:
        """Applies rows; the reply is encoded already."""
        if not request.HasField("batch"):
            raise InvalidRequest("the request has no batch", field="batch")
        done = asyncio.Event()
        rows = BatchCall(
            request.batch,
            done.set,
            caller.tenant,
            self._batch_limits,
            deadline_s=self._deadline_s(call),
        )
        del request
        share.take(rows.row_count - 1, rows.size_bytes)
        try:
            rows.submit(self._engine)
            await done.wait()
        finally:
            rows.cancel()  # if the caller left before the rows ran
        reply = rows.reply()
        call.rows_failed(rows.errors)
        return reply

    async def stream_batches(self, call: Call, caller: Caller) -> None:
        """Applies rows as they come."""
        stream = BatchStream(self._engine, call, self._calls, caller, limits=self._batch_limits)
        with self._access.holding(caller):
            await stream.serve()

    async def stream_steps(self, call: Call, caller: Caller) -> None:
        """Applies chunks as they come."""
        stream = StepStream(self._engine, call, self._calls, caller, max_tokens=self._max_chunk_tokens)
        with self._access.holding(caller):
            await stream.serve()

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

    def _unary(self, function: Handler, message_type: Any) -> Serve:
        """Serves a unary call from its metadata on, and ends one whose caller sets no deadline."""

        async def answered(call: Call, caller: Caller) -> bytes:
            open_call = self._calls.begin_unary(call.context, caller.tenant)
            raw = await open_call.message()
            call.metrics.received()
            request = [parse(message_type, raw)]  # not held here while it is served
            del raw
            call.is_about(request[0])
            reply = _serialize(await function(request.pop(), call, caller, open_call.share))
            open_call.replies(len(reply), self._calls.max_stall_s)
            return reply

        async def served(call: Call, caller: Caller) -> bytes:
            with self._access.holding(caller):
                if call.context.time_remaining() is not None:
                    return await answered(call, caller)
                try:
                    async with asyncio.timeout(self._calls.max_call_s):
                        return await answered(call, caller)
                except TimeoutError:
                    raise DeadlinePassed(
                        f"the call set no deadline and was not done after {self._calls.max_call_s:g} s; it "
                        "may still be applied"
                    ) from None

        return served

    def _deadline_s(self, call: Call) -> float:
        """Returns the monotonic time at which a chunk is no longer worth running."""
        remaining_s: float | None = call.context.time_remaining()
        return time.monotonic() + (self._calls.max_call_s if remaining_s is None else remaining_s)

    async def _session_message(self, session_id: str, key: bytes, session: OpenSession) -> pb.Session:
        record: Record = session.record
        return pb.Session(
            session_id=session_id,
            incarnation=record.incarnation,
            position=record.position,
            history_digest=record.digest,
            model=pb.ModelRef(name=session.model.name, version=session.model.version),
            fingerprint=record.fingerprint.hex(),
            expires_in_s=await self._sessions.expires_in_s(key),
            quarantine_reason=record.quarantine_reason,
        )

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


_STATE_KINDS: dict[str, Any] = {
    "state": pb.STATE_KIND_RECURRENT,
    "session_input": pb.STATE_KIND_SESSION_INPUT,
    "context": pb.STATE_KIND_CONTEXT,
}


def contract_message(contract: Contract) -> pb.Model:
    """Returns what a contract says as the fields of a model's message."""
    message = pb.Model(
        input=pb.InputSpec(
            name=contract.input.name,
            dtype=codec.dtype_number(contract.input.dtype),
            width=contract.input.width,
            is_token_id=contract.input.kind == "token_id",
            units=contract.input.units,
            description=contract.input.description,
        ),
        states=[
            pb.StateSpec(
                name=spec.name,
                dtype=codec.dtype_number(spec.dtype),
                shape=spec.shape,
                kind=_STATE_KINDS[spec.kind],
                is_required=spec.is_required,
                units=spec.units,
                description=spec.description,
            )
            for spec in contract.states
        ],
        state_bytes=contract.state_bytes,
        outputs=[
            pb.OutputSpec(
                name=spec.name,
                dtype=codec.dtype_number(spec.dtype),
                shape=spec.shape,
                role=spec.role,
                labels=spec.labels,
                is_last=spec.is_last,
                units=spec.units,
                description=spec.description,
            )
            for spec in contract.outputs
        ],
        description=contract.description,
        has_token_log_prob=contract.token_log_prob is not None,
        facts=dict(contract.facts),
        apart=sorted(contract.apart),
    )
    if contract.vocabulary is not None:
        message.vocabulary.size = contract.vocabulary.size
        message.vocabulary.is_bytes = contract.vocabulary.kind == "bytes"
    return message


def _handler(name: str, is_stream: bool, serve: Serve, metrics: RpcMetrics, identify: Identify) -> Any:
    """Builds the handler of an rpc: it reads for itself, so it begins before there is a message."""
    counted = _count_calls(_guard(name, serve, metrics, identify), metrics, counts_reply=not is_stream)
    if is_stream:
        return grpc.stream_stream_rpc_method_handler(counted)
    return grpc.stream_unary_rpc_method_handler(counted)


def _guard(
    method: str, serve: Serve, metrics: RpcMetrics, identify: Identify
) -> Callable[[Any], Awaitable[Any]]:
    """Turns what an rpc raises into a status; unknown errors are logged and sent as fixed text."""

    async def guarded(context: Any) -> Any:
        call, tenant = Call(method, context, metrics), ""
        try:
            caller = identify(context)
            tenant = caller.tenant
            reply = await serve(call, caller)
        except ServiceError as error:
            refusal = error
        except asyncio.CancelledError:
            call.ended("CANCELLED", tenant)
            raise
        except Exception as error:
            if isinstance(error, grpc.aio.BaseError):
                call.ended("ENDED", tenant)
                raise
            refusal = InternalFailure("the server failed on this request; its log says why")
            refusal.__cause__ = error
        else:
            call.ended("OK", tenant)
            return reply
        call.failed(refusal, tenant)
        call.ended(refusal.reason, tenant)
        return await abort(context, refusal.without_trace(), call.request_id)

    return guarded


def _count_calls(
    guarded: Callable[[Any], Awaitable[Any]], metrics: RpcMetrics, *, counts_reply: bool
) -> Callable[[Any, Any], Awaitable[Any]]:
    """Counts calls as they begin and end, and the one reply of those that do not stream."""

    async def counted(_: Any, context: Any) -> Any:
        metrics.started()
        started_s = time.perf_counter()
        failure: BaseException | None = None
        try:
            reply = await guarded(context)
            if counts_reply:
                metrics.sent()
            return reply
        except BaseException as error:
            failure = error
            raise
        finally:
            metrics.handled(code_of(context, failure), time.perf_counter() - started_s)
            failure = None  # it holds this frame

    return counted


def _serialize(reply: Any) -> bytes:
    if isinstance(reply, bytes):
        return reply
    serialized: bytes = reply.SerializeToString()
    return serialized
