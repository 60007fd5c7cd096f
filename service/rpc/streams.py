"""One StreamSteps call: chunks in, replies out as the engine gives them.

The engine answers the chunks of a session in order, so a list of finished replies is all it takes.
"""

import asyncio
from typing import Any

import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.engine import Engine
from service.engine.work import Answer, Work
from service.errors import ServiceError
from service.rpc.codec import encode_reply, to_work
from service.rpc.status import to_status

MAX_UNANSWERED = 1024
"""Chunks of one stream under way; reading pauses beyond it, and HTTP/2 flow control does the rest."""


class StepStream:
    """Serves one call.

    Args:
        engine: Applies the chunks.
        context: The call, of grpc.aio.
        max_tokens: Most tokens of a chunk.
    """

    def __init__(self, engine: Engine, context: Any, *, max_tokens: int) -> None:
        self._engine = engine
        self._context = context
        self._max_tokens = max_tokens
        self._replies: list[bytes] = []
        self._unanswered: set[Work] = set()
        self._pending_count = 0
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_read = False

    async def serve(self) -> None:
        """Returns when the client has sent its last chunk and has every reply."""
        reader = asyncio.create_task(self._read())
        try:
            while not (self._is_read and self._pending_count == 0 and not self._replies):
                await self._changed.wait()
                self._changed.clear()
                replies, self._replies = self._replies, []
                for reply in replies:
                    await self._context.write(reply)
            await reader
        finally:
            reader.cancel()
            for work in self._unanswered:
                work.is_cancelled = True

    async def _read(self) -> None:
        try:
            while (request := await self._context.read()) is not grpc.aio.EOF:
                self._submit(request.chunk)
                if self._pending_count >= MAX_UNANSWERED:
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            self._is_read = True
            self._changed.set()

    def _submit(self, chunk: pb.Chunk) -> None:
        self._pending_count += 1
        work: Work | None = None

        def answer(outcome: Answer | ServiceError) -> None:
            self._pending_count -= 1
            self._has_room.set()
            if work is not None:
                self._unanswered.discard(work)
            self._replies.append(_encode(chunk, outcome))
            self._changed.set()

        try:
            work = to_work(chunk, answer, max_tokens=self._max_tokens)
        except ServiceError as error:
            answer(error)
        else:
            self._unanswered.add(work)
            self._engine.submit(work)


def _encode(chunk: pb.Chunk, outcome: Answer | ServiceError) -> bytes:
    if isinstance(outcome, Answer):
        return encode_reply(chunk, outcome)
    error = pb.ChunkError(tag=chunk.tag, session_id=chunk.session_id, status=to_status(outcome))
    return pb.StreamStepsResponse(error=error).SerializeToString()
