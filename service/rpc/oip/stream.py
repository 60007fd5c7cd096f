"""ModelStreamInfer: requests of many sequences in, replies out in the order of the requests.

Of each sequence one request is applied at a time; requests of other sequences go on meanwhile. A request
that fails is answered by its error, and the stream goes on, unless its caller asks for it to end.
"""

import asyncio
import time
from collections import deque
from typing import Any

from holdfast.errors import InternalFailure, ServiceError
from holdfast.oip.v2 import oip_pb2 as oip
from service.rpc.codec import CHUNK_BYTES, parse
from service.rpc.oip.inference import Inference
from service.rpc.oip.sequence import Sequence, read_sequence
from service.rpc.status import message_of
from service.rpc.streams import ReplyStream

ENDS_ON_ERROR = "triton_grpc_error"
"""Metadata of a call; with "true" an error ends the stream, as its status."""

_FINAL = "triton_final_response"


class _Turn:
    """A request whose reply waits for those of the requests before it."""

    __slots__ = ("error", "reply", "request_id", "taken_bytes", "taken_count")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.reply: bytes | None = None
        self.error: ServiceError | None = None
        self.taken_count = self.taken_bytes = 0  # what was let in for it, given back with the reply


class InferStream(ReplyStream):
    """Serves one ModelStreamInfer call.

    Args:
        inference: Applies requests.
        arguments: As of `ReplyStream`, and so are the options.
    """

    def __init__(self, inference: Inference, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inference = inference
        self._turns: deque[_Turn] = deque()
        self._last: dict[str, asyncio.Task[None]] = {}  # of each sequence
        self._tasks: set[asyncio.Task[None]] = set()
        metadata = self._context.invocation_metadata() or ()
        self._ends_on_error = any(
            key == ENDS_ON_ERROR and str(value).lower() == "true" for key, value in metadata
        )

    def _submit(self, raw: bytes) -> None:
        request = parse(oip.ModelInferRequest, raw)
        self._pending_count += 1
        turn = _Turn(request.id)
        self._turns.append(turn)
        try:
            sequence = read_sequence(request.model_name, request.parameters)
            size_bytes = CHUNK_BYTES + len(raw)
            self._share.take(1, size_bytes)
        except ServiceError as error:
            self._settle(turn, error)
            return
        turn.taken_count, turn.taken_bytes = 1, size_bytes
        before = self._last.get(sequence.session_id)
        task = asyncio.create_task(self._infer(turn, request, sequence, before))
        self._last[sequence.session_id] = task
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._over(sequence.session_id, task))

    async def _infer(
        self,
        turn: _Turn,
        request: oip.ModelInferRequest,
        sequence: Sequence,
        before: "asyncio.Task[None] | None",
    ) -> None:
        """Applies a request, after the one before it of its sequence."""
        if before is not None:
            await asyncio.wait([before])
        deadline_s = time.monotonic() + self._calls.max_call_s
        try:
            reply = await self._inference.infer(request, sequence, self._caller, deadline_s)
        except ServiceError as error:
            self._settle(turn, error, sequence.session_id)
        except Exception as error:  # noqa: BLE001 -- logged, whatever it is
            failure = InternalFailure("the server failed on this request; its log says why")
            failure.__cause__ = error
            self._settle(turn, failure, sequence.session_id)
        else:
            reply.parameters[_FINAL].bool_param = True
            self._settle(turn, reply)

    def _over(self, session_id: str, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._last.get(session_id) is task:
            del self._last[session_id]

    def _settle(
        self, turn: _Turn, outcome: oip.ModelInferResponse | ServiceError, session_id: str = ""
    ) -> None:
        """Lets the reply to a request go, once those to all requests before it have gone."""
        if isinstance(outcome, ServiceError):
            self._call.failed(outcome, session_id)
            turn.error = outcome.without_trace()
            message = oip.ModelStreamInferResponse(
                error_message=f"{outcome.reason}: {message_of(outcome)}",
                infer_response=oip.ModelInferResponse(id=turn.request_id),
            )
        else:
            message = oip.ModelStreamInferResponse(infer_response=outcome)
        turn.reply = message.SerializeToString()
        while self._turns and (reply := self._turns[0].reply) is not None:
            first = self._turns.popleft()
            if first.error is not None and self._ends_on_error:
                self._end_after_replies(first.error)
                return
            self._finish(reply, 1, first.taken_count, first.taken_bytes)

    def _end_after_replies(self, error: ServiceError) -> None:
        """Reads no more; once what is finished is written, the error is the stream's status."""
        self._pending_count -= 1 + len(self._turns)
        self._turns.clear()
        if self._ending is None:
            self._ending = error
        self._reader.cancel()
        self._is_read = True
        self._wakes_writer.ring()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._turns.clear()
