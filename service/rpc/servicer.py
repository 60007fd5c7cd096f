"""The rpcs of holdfast.v1: each reads its request, asks engine or sessions, and writes its reply."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.engine import Engine
from service.engine.sessions import OpenSession, Sessions, new_session_id
from service.engine.work import Answer, Work
from service.errors import InternalFailure, InvalidRequest, NotImplementedYet, ServiceError
from service.model.contract import Contract
from service.model.protocol import Model
from service.model.repository import ModelRepository
from service.rpc import codec
from service.rpc.columns import ColumnsCall
from service.rpc.status import CODES, to_trailers
from service.rpc.streams import BatchStream, StepStream
from service.store.record import Record

_log = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name

Handler = Callable[[Any, Any], Awaitable[Any]]


class Servicer:
    """Implements the rpcs.

    Args:
        engine: Applies chunks.
        sessions: Opens, reads, closes and releases sessions.
        models: The models served.
        max_chunk_tokens: Most tokens of a chunk.
    """

    def __init__(
        self, engine: Engine, sessions: Sessions, models: ModelRepository, *, max_chunk_tokens: int
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._models = models
        self._max_chunk_tokens = max_chunk_tokens

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of every rpc in the contract; those not built say so."""
        built: dict[str, Handler] = {
            "OpenSession": self.open_session,
            "GetSession": self.get_session,
            "CloseSession": self.close_session,
            "ReleaseSession": self.release_session,
            "Step": self.step,
            "StepBatch": self.step_batch,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }
        service = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
        handlers = {
            method.name: _handler(method, built.get(method.name, _not_built(method.name)))
            for method in service.methods
        }
        handlers["StreamSteps"] = grpc.stream_stream_rpc_method_handler(
            self.stream_steps, request_deserializer=pb.StreamStepsRequest.FromString
        )
        handlers["StreamBatches"] = grpc.stream_stream_rpc_method_handler(
            self.stream_batches, request_deserializer=pb.StreamBatchesRequest.FromString
        )
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    async def open_session(self, request: pb.OpenSessionRequest, _: Any) -> pb.OpenSessionResponse:
        """Opens or resumes a session."""
        session_id = request.session_id or new_session_id()
        key = codec.key_of(session_id)
        state = b""
        if request.initial_state:
            model = self._models.find(request.model.name, request.model.version)
            state = codec.to_raw_state(request.initial_state, model.contract, "initial_state")
        session = await self._sessions.open(
            key,
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            take_over=request.take_over,
            state=state,
        )
        return pb.OpenSessionResponse(
            session=await self._session_message(session_id, key, session),
            resumed=session.is_resumed,
        )

    async def get_session(self, request: pb.GetSessionRequest, _: Any) -> pb.GetSessionResponse:
        """Reads a session."""
        key = codec.key_of(request.session_id)
        session = await self._sessions.read(key)
        state = []
        if request.include_state:
            state = codec.from_raw_state(session.record.state, session.model.contract)
        message = await self._session_message(request.session_id, key, session)
        return pb.GetSessionResponse(session=message, state=state)

    async def close_session(self, request: pb.CloseSessionRequest, _: Any) -> pb.CloseSessionResponse:
        """Closes a session."""
        key = codec.key_of(request.session_id)
        position = await self._sessions.close(key, request.incarnation)
        return pb.CloseSessionResponse(position=position)

    async def release_session(self, request: pb.ReleaseSessionRequest, _: Any) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held, or moves its record aside."""
        released = await self._sessions.release(codec.key_of(request.session_id), discard=request.discard)
        return pb.ReleaseSessionResponse(reason=released.reason, position=released.position)

    async def step(self, request: pb.StepRequest, context: Any) -> bytes:
        """Applies one chunk; the reply is encoded already."""
        if not request.HasField("chunk"):
            raise InvalidRequest("the request has no chunk", field="chunk")
        outcome: asyncio.Future[Answer | ServiceError] = asyncio.get_running_loop().create_future()

        def answer(_: Work, value: Answer | ServiceError) -> None:
            if not outcome.done():
                outcome.set_result(value)

        work = codec.to_work(
            request.chunk,
            answer,
            max_tokens=self._max_chunk_tokens,
            deadline_s=_deadline_s(context),
        )
        self._engine.submit(work)
        try:
            result = await outcome
        finally:
            work.is_cancelled = True  # if the caller left before the chunk ran
        if isinstance(result, ServiceError):
            raise result
        return codec.encode_reply(request.chunk, result)

    async def step_batch(self, request: pb.StepBatchRequest, context: Any) -> bytes:
        """Applies rows; the reply is encoded already."""
        if not request.HasField("columns"):
            raise InvalidRequest("the request has no columns", field="columns")
        done = asyncio.Event()
        call = ColumnsCall(
            request.columns, done.set, max_tokens=self._max_chunk_tokens, deadline_s=_deadline_s(context)
        )
        call.submit(self._engine)
        try:
            await done.wait()
        finally:
            call.cancel()  # if the caller left before the rows ran
        return call.reply()

    async def stream_batches(self, _: Any, context: Any) -> None:
        """Applies rows as they come."""
        await BatchStream(self._engine, context, max_tokens=self._max_chunk_tokens).serve()

    async def stream_steps(self, _: Any, context: Any) -> None:
        """Applies chunks as they come."""
        await StepStream(self._engine, context, max_tokens=self._max_chunk_tokens).serve()

    async def list_models(self, _: pb.ListModelsRequest, __: Any) -> pb.ListModelsResponse:
        """Lists every model."""
        return pb.ListModelsResponse(models=[self._model_message(model) for model in self._models])

    async def get_model(self, request: pb.GetModelRequest, _: Any) -> pb.GetModelResponse:
        """Describes one model."""
        if not request.model.name:
            raise InvalidRequest("model.name is empty", field="model.name")
        model = self._models.find(request.model.name, request.model.version)
        return pb.GetModelResponse(model=self._model_message(model))

    async def _session_message(self, session_id: str, key: bytes, session: OpenSession) -> pb.Session:
        record: Record = session.record
        return pb.Session(
            session_id=session_id,
            incarnation=record.incarnation,
            position=record.position,
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
        message.MergeFrom(_contract_message(model.contract))
        return message


def _contract_message(contract: Contract) -> pb.Model:
    message = pb.Model(
        input=pb.InputSpec(
            name=contract.input.name,
            dtype=codec.dtype_number(contract.input.dtype),
            width=contract.input.width,
            is_token_id=contract.input.kind == "token_id",
        ),
        states=[
            pb.StateSpec(name=spec.name, dtype=codec.dtype_number(spec.dtype), shape=spec.shape)
            for spec in contract.states
        ],
        state_bytes=contract.state_bytes,
        outputs=[
            pb.OutputSpec(name=spec.name, dtype=codec.dtype_number(spec.dtype), shape=spec.shape)
            for spec in contract.outputs
        ],
        has_token_log_prob=contract.token_log_prob is not None,
        facts=dict(contract.facts),
    )
    if contract.vocabulary is not None:
        message.vocabulary.size = contract.vocabulary.size
        message.vocabulary.is_bytes = contract.vocabulary.kind == "bytes"
    return message


def _handler(method: Any, function: Handler) -> Any:
    """Builds the handler of an rpc with one request; replies may be messages or bytes."""
    request_type = getattr(pb, method.input_type.name)
    guarded = _guard(function)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(guarded, request_deserializer=request_type.FromString)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(guarded, request_deserializer=request_type.FromString)
    return grpc.unary_unary_rpc_method_handler(
        guarded, request_deserializer=request_type.FromString, response_serializer=_serialize
    )


def _guard(function: Handler) -> Handler:
    """Turns what an rpc raises into a status; unknown errors are logged and sent as fixed text."""

    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await function(request, context)
        except ServiceError as error:
            refusal = error
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            _log.exception("bug: an rpc failed")
            refusal = InternalFailure("the server failed on this request; its log says why")
        code = CODES[type(refusal)]
        return await context.abort(code, refusal.message, to_trailers(refusal))

    return guarded


def _not_built(name: str) -> Handler:
    async def refuse(_: Any, __: Any) -> Any:
        raise NotImplementedYet(f"{name} is part of the contract, this version does not have it")

    return refuse


def _serialize(reply: Any) -> bytes:
    if isinstance(reply, bytes):
        return reply
    serialized: bytes = reply.SerializeToString()
    return serialized


def _deadline_s(context: Any) -> float:
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else time.monotonic() + remaining_s
