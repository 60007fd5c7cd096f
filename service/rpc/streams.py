"""Streams of chunks and of batches: requests in, replies out as the engine gives them.

Replies to the chunks of a session leave in the order of the chunks, whatever refuses them and when; only a
batch that asks for it gets them as they come. When a stream ends before its client wants it, its status
says how far it came, see `open_calls`.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import grpc.aio

from holdfast.errors import Draining, InternalFailure, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.common.background import Wake
from service.engine.admission import Share
from service.engine.driver import Driver
from service.engine.rows import Chunk, Reply
from service.rpc.batches import BatchCall, BatchLimits
from service.rpc.call import Call
from service.rpc.codec import Named, encode_reply, parse, size_of, to_chunk
from service.rpc.credentials import Caller
from service.rpc.open_calls import OpenCalls
from service.rpc.status import abort, to_status
from service.telemetry.rpc_metrics import RpcMetrics

_log = logging.getLogger(__name__)

MAX_UNANSWERED = 1024
"""Chunks of one stream whose replies are not written; beyond it reading pauses, and HTTP/2 flow control
does the rest. So a client that sends and does not read is held back, and holds nobody else."""

MAX_UNWRITTEN_BYTES = 1 << 20
"""The same in bytes, by the largest reply per chunk that the stream has had."""

PART_S = 0.005
"""Rows that are answered wait so long for others of their message."""

_FIRST_REPLY_BYTES = 4096
"""What a chunk's reply is taken to have before there was one."""


class ReplyStream(ABC):
    """One call: reads requests while it writes replies.

    Args:
        engine: Applies the chunks.
        call: The call.
        calls: Knows it while it lasts, and may end it.
        metrics: Counts what is read and written.
        max_tokens: Most tokens of a chunk.

    Attributes:
        is_writing: A reply is being written.
        written_count: Replies written so far.
        heard_s: Monotonic time at which the last request had come.
    """

    _share: Share

    def __init__(
        self, engine: Driver, call: Call, calls: OpenCalls, metrics: RpcMetrics, *, max_tokens: int
    ) -> None:
        self.is_writing = False
        self.written_count = 0
        self.heard_s = time.monotonic()
        self._engine = engine
        self._call = call
        self._context = call.context
        self._calls = calls
        self._caller = call.caller
        self._metrics = metrics
        self._max_tokens = max_tokens
        self._read_count = 0
        self._ending: ServiceError | None = None
        self._is_cut = False
        self._unwritten_bytes = 0
        self._replies: list[tuple[bytes, int, bool]] = []
        self._pending_count = 0
        self._largest_bytes = 0
        self._writing_bytes = 0
        self._is_over = False
        self._wakes_writer = Wake()
        self._wakes_reader = Wake()
        self._is_read = False

    async def serve(self) -> None:
        """Returns when the client has sent its last chunk and has every reply.

        Raises:
            Draining, Overloaded: The stream may not open.
        """
        with self._calls.stream(self, self._caller.tenant) as self._share:
            self._serving = asyncio.current_task()
            try:
                await self._exchange()
            except asyncio.CancelledError:
                if not self._is_cut or self._serving is None or self._serving.uncancel():
                    raise  # not, or not only, `cut` has cancelled this
            if self._ending is not None:
                await self._end(self._ending)

    def say_goodbye(self, why: str) -> None:
        """Reads no more; the stream ends once every chunk that was read is answered."""
        if not self._is_read:
            self._ending = Draining(
                f"{why}; go on with the first chunk that has no reply", retry_after_s=0.0
            )
            self._reader.cancel()
            self._is_read = True
            self._wakes_writer.ring()

    def cut(self, error: ServiceError) -> None:
        """Ends the stream with this error, whatever is under way."""
        self._ending = error
        self._is_cut = True
        if self._serving is not None:
            self._serving.cancel()

    async def _end(self, error: ServiceError) -> None:
        error.metadata |= {
            "requests_read": str(self._read_count),
            "requests_answered": str(self.written_count),
        }
        await abort(self._context, error, self._call.request_id)

    async def _exchange(self) -> None:
        self._reader = asyncio.create_task(self._read())
        try:
            while not (self._is_read and self._pending_count == 0):
                if not self._replies:
                    await self._wakes_writer.wait()
                await self._write()
            if self._ending is None:
                await self._reader
        finally:
            self._is_over = True
            self._replies.clear()
            self._share.hold(0, 0)
            if self.is_writing:
                self._share.change(0, self._writing_bytes)  # gRPC holds it for as long as the call lasts
            self._reader.cancel()
            self._cancel()

    async def _write(self) -> None:
        """Writes what is finished."""
        replies, self._replies = self._replies, []
        size_bytes, self._unwritten_bytes = self._unwritten_bytes, 0
        self.is_writing = True
        for reply, chunk_count, is_last in replies:
            self._writing_bytes = len(reply)
            await self._context.write(reply)
            self.written_count += is_last
            self._metrics.sent()
            self._pending_count -= chunk_count
            self._wakes_reader.ring()
        self.is_writing = False
        self._share.change(0, -size_bytes)

    async def _read(self) -> None:
        try:
            while (raw := await self._context.read()) is not grpc.aio.EOF:
                self._metrics.received()
                self._read_count += 1
                self.heard_s = time.monotonic()
                self._submit(raw)
                del raw
                while self._is_full():
                    await self._wakes_reader.wait()
        finally:
            self._is_read = True
            self._wakes_writer.ring()

    @abstractmethod
    def _submit(self, raw: bytes) -> None:
        """Reads a request and gives it to the engine; sees to its reply.

        Raises:
            InvalidRequest: It is no message at all, so nothing says which reply it would have had.
        """

    @abstractmethod
    def _cancel(self) -> None:
        """The call has ended: what has not run yet is skipped."""

    def _is_full(self) -> bool:
        size_bytes = self._pending_count * (self._largest_bytes or _FIRST_REPLY_BYTES)
        return self._pending_count >= MAX_UNANSWERED or size_bytes >= MAX_UNWRITTEN_BYTES

    def _finish(
        self,
        reply: bytes,
        chunk_count: int,
        taken_count: int = 0,
        taken_bytes: int = 0,
        *,
        is_last: bool = True,
    ) -> None:
        """Lets a reply go; once it is written, as many chunks come in as it answers.

        Args:
            reply: Serialised.
            chunk_count: So many it answers.
            taken_count: Of them were let in.
            taken_bytes: Their size as counted then.
            is_last: Of the replies to its request.
        """
        if self._is_over:
            return
        self._replies.append((reply, chunk_count, is_last))
        self._unwritten_bytes += len(reply)
        self._share.change(-taken_count, len(reply) - taken_bytes)
        self._largest_bytes = max(self._largest_bytes, len(reply) // chunk_count)
        self._wakes_writer.ring()


class _Turn:
    """A chunk whose reply waits for those of the chunks before it."""

    __slots__ = ("chunk", "reply", "taken_bytes", "taken_count")

    def __init__(self, chunk: Named) -> None:
        self.chunk = chunk
        self.reply: bytes | None = None
        self.taken_count = self.taken_bytes = 0  # what was let in for it, given back with the reply


class StepStream(ReplyStream):
    """Serves one StreamSteps call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unanswered: set[Chunk] = set()
        self._lines: dict[str, deque[_Turn]] = {}

    def _submit(self, raw: bytes) -> None:
        message = parse(pb.StreamStepsRequest, raw).chunk
        self._pending_count += 1
        turn = _Turn(Named(message.tag, message.session_id))
        self._lines.setdefault(turn.chunk.session_id, deque()).append(turn)
        try:
            chunk = to_chunk(
                message,
                self._reply,
                self._caller,
                max_tokens=self._max_tokens,
                deadline_s=time.monotonic() + self._calls.max_call_s,
            )
            size_bytes = len(raw) + size_of(chunk)
            self._share.take(1, size_bytes)
        except ServiceError as error:
            self._settle(turn, error)
        else:
            turn.taken_count, turn.taken_bytes = 1, size_bytes
            chunk.request = turn
            self._unanswered.add(chunk)
            self._engine.submit(chunk)

    def _reply(self, chunk: Chunk, outcome: Reply | ServiceError) -> None:
        self._unanswered.discard(chunk)
        if isinstance(outcome, ServiceError):
            self._call.failed(outcome, chunk.request.chunk.session_id)
        self._settle(chunk.request, outcome)

    def _settle(self, turn: _Turn, outcome: Reply | ServiceError) -> None:
        """Lets the reply to a chunk go, once those to all chunks of its session before it have gone."""
        turn.reply = _encode(turn.chunk, outcome, self._caller)
        session_id = turn.chunk.session_id
        line = self._lines[session_id]
        while line and (reply := line[0].reply) is not None:
            first = line.popleft()
            self._finish(reply, 1, first.taken_count, first.taken_bytes)
        if not line:
            del self._lines[session_id]

    def _cancel(self) -> None:
        for chunk in self._unanswered:
            chunk.is_cancelled = True
        self._unanswered.clear()


class _Parts:
    """Of a message whose reply goes in parts."""

    __slots__ = ("size_bytes", "timer")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes  # as it was let in
        self.timer: asyncio.TimerHandle | None = None  # sends what is answered


class BatchStream(ReplyStream):
    """Serves one StreamBatches call; replies keep the order of the requests, but for those in parts."""

    def __init__(self, *arguments: Any, limits: BatchLimits, **options: Any) -> None:
        super().__init__(*arguments, max_tokens=limits.max_tokens, **options)
        self._limits = limits
        self._messages: deque[tuple[BatchCall, int] | bytes] = deque()
        self._parted: dict[BatchCall, _Parts] = {}

    def _submit(self, raw: bytes) -> None:
        batch = parse(pb.StreamBatchesRequest, raw).batch
        try:
            call = BatchCall(
                batch,
                self._finish_parted if batch.in_parts else self._flush,
                self._caller.tenant,
                self._limits,
                on_part=self._part if batch.in_parts else None,
                deadline_s=time.monotonic() + self._calls.max_call_s,
            )
            size_bytes = len(raw) + call.size_bytes
            self._share.take(call.row_count, size_bytes)
        except ServiceError as error:
            refusal = pb.ChunkError(tag=batch.tag, status=to_status(error))
            reply = pb.StreamBatchesResponse(error=refusal).SerializeToString()
            self._pending_count += 1
            put = self._messages.appendleft if batch.in_parts else self._messages.append
            put(reply)
            self._flush()
            return
        self._pending_count += call.row_count
        if batch.in_parts:
            self._parted[call] = _Parts(size_bytes)
        else:
            self._messages.append((call, size_bytes))
        call.submit(self._engine)

    def _part(self, call: BatchCall) -> None:
        """Has the rows that are answered wait for others, for a moment."""
        parts = self._parted.get(call)
        if parts is not None and parts.timer is None:
            loop = asyncio.get_running_loop()
            parts.timer = loop.call_later(PART_S, self._finish_part, call)

    def _finish_part(self, call: BatchCall) -> None:
        self._parted[call].timer = None
        count = call.answered_count
        self._call.rows_failed(call.errors)
        self._finish(_encode_batch(call), count, count, is_last=False)

    def _finish_parted(self, call: BatchCall) -> None:
        """Sends the last part of a reply."""
        if (parts := self._parted.pop(call, None)) is not None:
            if parts.timer is not None:
                parts.timer.cancel()
            count = call.answered_count
            self._call.rows_failed(call.errors)
            self._finish(_encode_batch(call), count, count, parts.size_bytes)

    def _flush(self, _: BatchCall | None = None) -> None:
        """Sends what is finished, up to the first request that is not."""
        while self._messages:
            first = self._messages[0]
            if isinstance(first, bytes):
                self._finish(first, 1)
            elif first[0].is_done:
                call, size_bytes = first
                self._call.rows_failed(call.errors)
                self._finish(_encode_batch(call), call.row_count, call.row_count, size_bytes)
            else:
                return
            self._messages.popleft()

    def _cancel(self) -> None:
        for message in self._messages:
            if not isinstance(message, bytes):
                message[0].cancel()
        for call, parts in self._parted.items():
            call.cancel()
            if parts.timer is not None:
                parts.timer.cancel()
        self._messages.clear()
        self._parted.clear()


def _encode_batch(call: BatchCall) -> bytes:
    """Returns the reply to a message; whatever is wrong with it must not hold those behind it."""
    try:
        return call.reply()
    except Exception:  # noqa: BLE001 -- logged, whatever it is
        _log.exception("bug: the reply to a batch cannot be written")
    error = InternalFailure("the rows may have been applied, but their reply cannot be written")
    refusal = pb.ChunkError(tag=call.tag, status=to_status(error))
    return pb.StreamBatchesResponse(error=refusal).SerializeToString()


def _encode(chunk: Named, outcome: Reply | ServiceError, caller: Caller) -> bytes:
    if isinstance(outcome, Reply):
        return encode_reply(chunk, outcome, caller)
    error = pb.ChunkError(tag=chunk.tag, session_id=chunk.session_id, status=to_status(outcome))
    return pb.StreamStepsResponse(error=error).SerializeToString()
