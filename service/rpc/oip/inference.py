"""Applies a request of the Open Inference Protocol.

It is an ordinary chunk, committed once, after an opening where its sequence starts.
"""

import asyncio
import contextlib
import functools
import time
from typing import Any

from holdfast.errors import (
    InvalidRequest,
    PositionConflict,
    ServiceError,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
)
from holdfast.oip.v2 import oip_pb2 as oip
from service.engine.changes import MAX_ATTEMPTS
from service.engine.driver import Driver
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Opening, Sessions
from service.model.protocol import Model, Models
from service.rpc.codec import key_of, to_raw_state
from service.rpc.credentials import Caller
from service.rpc.oip.ends import Ends
from service.rpc.oip.mapping import read_session_inputs, read_tokens
from service.rpc.oip.replies import infer_response, selection_of, wanted_outputs
from service.rpc.oip.sequence import Sequence, explained
from service.rpc.oip.statistics import Statistics
from service.rpc.oip.tensors import read_inputs

MAX_VERSION = (1 << 31) - 1


class Inference:
    """Applies requests.

    Args:
        engine: Applies chunks.
        sessions: Opens and deletes sessions.
        models: The models served.
        statistics: Counts requests.
        max_tokens: Most tokens of a request.
    """

    def __init__(
        self, engine: Driver, sessions: Sessions, models: Models, statistics: Statistics, max_tokens: int
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._models = models
        self._statistics = statistics
        self._ends = Ends(sessions)
        self._max_tokens = max_tokens

    async def infer(
        self, request: oip.ModelInferRequest, sequence: Sequence, caller: Caller, deadline_s: float
    ) -> oip.ModelInferResponse:
        """Applies a request.

        Args:
            request: As received.
            sequence: What its parameters say.
            caller: Whose it is.
            deadline_s: Monotonic time after which nobody waits for it.

        Raises:
            ServiceError: As for a step; of the session's errors the message names the sequence.
        """
        began_s = time.monotonic()
        model = self._models.find(request.model_name, read_version(request.model_version, "model_version"))
        succeeded = False
        try:
            reply = await self._apply(
                request, sequence, model, caller, min(deadline_s, began_s + sequence.wait_s)
            )
            succeeded = True
        except InvalidRequest:
            raise
        except ServiceError as error:
            raise explained(error, sequence) from None
        finally:
            self._statistics.count(model, time.monotonic() - began_s, succeeded=succeeded)
        return reply

    async def _apply(
        self,
        request: oip.ModelInferRequest,
        sequence: Sequence,
        model: Model,
        caller: Caller,
        deadline_s: float,
    ) -> oip.ModelInferResponse:
        given, wanted = read_inputs(request), wanted_outputs(request)
        arrays = read_session_inputs(given, model.contract, is_start=sequence.is_start)
        tokens = read_tokens(given, model.contract, self._max_tokens)
        version = read_version(request.model_version, "model_version")
        key = key_of(caller.tenant, sequence.session_id)
        await self._ends.settled(key)
        position, incarnation = sequence.position, sequence.incarnation
        if sequence.is_start:
            begin = functools.partial(_raw_state, arrays)
            position, incarnation = (
                0,
                await self._start(key, Opening(model.name, version, must_be_new=True, state=begin)),
            )
        outcome: asyncio.Future[Reply | ServiceError] = asyncio.get_running_loop().create_future()

        def answer(_: Chunk, value: Reply | ServiceError) -> None:
            if not outcome.done():
                outcome.set_result(value)

        chunk = Chunk(
            key,
            tokens.asked(model.name, version, selection_of(wanted)),
            tokens.data,
            answer,
            position=position,
            incarnation=incarnation,
            deadline_s=deadline_s,
        )
        try:
            self._engine.submit(chunk)
            result = await outcome
        finally:
            chunk.is_cancelled = True  # if the caller left before the chunk ran
        if isinstance(result, ServiceError):
            raise result
        reply = infer_response(request.id, model.name, wanted, result, tokens.leading)
        if sequence.is_end:
            self._ends.begin(key, result.incarnation)
        return reply

    async def _start(self, key: bytes, opening: Opening) -> int:
        """Opens a session in the place of any that is there; returns its incarnation."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return (await self._sessions.open(key, opening)).record.incarnation
            except SessionExists:
                with contextlib.suppress(SessionNotFound, SessionDeleted):  # gone meanwhile, which will do
                    await self._sessions.delete(key, 0)
        raise PositionConflict("other callers keep starting it", field="parameters[sequence_start]")


def read_version(text: str, field: str) -> int:
    """Returns a model's version; 0 where none is named.

    Raises:
        InvalidRequest: It is no version.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:10]) <= MAX_VERSION and len(text) <= 10):
        raise InvalidRequest(
            f"{field} is {text!r}, expected a number 1..{MAX_VERSION}, or nothing for the newest",
            field=field,
        )
    return int(text)


def _raw_state(arrays: dict[str, Any], model: Model) -> bytes:
    return to_raw_state(arrays, model.contract, "inputs")
