"""Watches a session: what others do with it, over one server after another."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Generator
from functools import cached_property
from typing import Any, TypedDict

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from holdfast.client.calls import Calls
from holdfast.client.connection import Stream
from holdfast.client.options import SessionId, flag, real_number, session_id_text, whole_number
from holdfast.client.reply import StepReply
from holdfast.client.runner import Runner
from holdfast.client.status import from_rpc
from holdfast.client.tokens import to_arrays
from holdfast.client.trace_context import with_trace_context
from holdfast.errors import (
    DeadlinePassed,
    HoldfastError,
    SessionDeleted,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)
from holdfast.v1 import holdfast_pb2 as pb

_GONE = (SessionNotFound, SessionDeleted, SessionExpired, SessionLost)


class WatchOptions(TypedDict, total=False):
    """How a session may be watched; see `AsyncClient.watch_session`."""

    max_rate_hz: float
    top_k: int
    token_log_prob: bool
    state: bool


class WatchedChunk:
    """What became of a watched session. Parts are read when asked for.

    Attributes:
        position: Tokens the session has consumed, this chunk included.
        history_digest: Of these tokens, see `holdfast.history_digest`.
        incarnation: Number of this life of the session; another writer that takes it over has another.
        model_version: Version that ran.
        token_count: Tokens of the chunk; 0 where only the position is told: at the beginning, after a
            takeover, and where more was missed.
        skipped_tokens: Tokens between the chunk before and this one that are not shown.
        replayed: The chunk had been applied before, and was answered by the reply kept from then.
        committed_unix_s: Seconds since 1970 by the clock of the server that committed it; 0 without tokens.
        replica: Names the process that committed it, as host and process id; "" without tokens.
        ended: The session was deleted, or has expired; nothing follows.
    """

    def __init__(self, message: pb.WatchSessionResponse) -> None:
        self._message = message
        self.position: int = message.position
        self.history_digest: int = message.history_digest
        self.incarnation: int = message.incarnation
        self.model_version: int = message.model_version
        self.skipped_tokens: int = message.skipped_tokens
        self.replayed: bool = message.replayed
        self.committed_unix_s: float = message.committed_unix_s
        self.replica: str = message.replica
        self.ended: bool = message.ended
        self.token_count: int = 0 if self.tokens is None else len(self.tokens)

    @cached_property
    def tokens(self) -> bytes | list[int] | NDArray[np.float32] | None:
        """The tokens: text as bytes, ids as a list, features float32 (k, width); None without any."""
        tokens = self._message.tokens
        match tokens.WhichOneof("kind"):
            case "text":
                return tokens.text
            case "ids":
                return list(tokens.ids.values)
            case "features":
                return to_arrays([pb.NamedTensor(tensor=tokens.features)])[""]
            case _:
                return None

    @property
    def top(self) -> list[list[tuple[int, float]]]:
        """Per token the likeliest next tokens, as in `StepReply.top`; empty where they cannot be had."""
        return self._reply.top if self._message.outputs.top_ids else []

    @property
    def token_log_probs(self) -> NDArray[np.float32] | None:
        """Log p(token | all tokens before it), float32 (k,); None if not asked for, or not to be had."""
        return self._reply.token_log_probs

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """State after the chunk by name, without a batch axis, if asked for and to be had."""
        return dict(self._reply.state)

    @cached_property
    def _reply(self) -> StepReply:
        return StepReply(pb.ChunkResult(outputs=self._message.outputs))

    def __repr__(self) -> str:
        return f"WatchedChunk(position={self.position}, tokens={self.tokens!r:.80})"


def watch_request(
    session_id: SessionId,
    *,
    max_rate_hz: float = 0.0,
    top_k: int = 0,
    token_log_prob: bool = False,
    state: bool = False,
) -> pb.WatchSessionRequest:
    """Writes what to watch; see `AsyncClient.watch_session`.

    Raises:
        TypeError, ValueError: An option is not what it should be.
    """
    return pb.WatchSessionRequest(
        session_id=session_id_text(session_id),
        max_rate_hz=real_number("max_rate_hz", max_rate_hz),
        top_k=whole_number("top_k", top_k, at_least=0),
        token_log_prob=flag("token_log_prob", token_log_prob),
        include_state=flag("state", state),
    )


class Watch:
    """One watch.

    Args:
        calls: Of the client.
        request: What to watch.
    """

    def __init__(self, calls: Calls, request: pb.WatchSessionRequest) -> None:
        self._calls = calls
        self._request = request
        self._stream: Stream | None = None
        self._last: WatchedChunk | None = None
        self._is_over = False

    async def chunks(self) -> AsyncGenerator[WatchedChunk, None]:
        """Yields what becomes of the session."""
        try:
            while (chunk := await self._next()) is not None:
                self._last = chunk
                yield chunk
        finally:
            if self._stream is not None:
                self._stream.cancel()

    async def _next(self) -> WatchedChunk | None:
        """Returns the next chunk; None after the end.

        Raises:
            HoldfastError: It cannot go on.
        """
        if self._last is not None and self._last.ended:
            return None
        attempt, until_s = 0, self._calls.deadline_s(None)
        while True:
            try:
                if self._stream is not None:
                    return WatchedChunk(await self._read(self._stream))
                chunk = self._resumed(await self._begin(self._calls.attempt_deadline_s(attempt, until_s)))
                if chunk is not None:
                    return chunk
            except HoldfastError as error:
                was_open, self._stream = self._stream is not None, None
                if isinstance(error, _GONE) and self._last is not None:
                    return _end_of(self._last)
                if not error.retryable:
                    raise
                if was_open:
                    attempt, until_s = 0, self._calls.deadline_s(None)
                attempt += 1
                await self._calls.pause(error, attempt, until_s)

    async def _begin(self, deadline_s: float) -> WatchedChunk:
        """Calls a server, and returns where the session stands.

        Raises:
            HoldfastError: It refuses, or does not answer in time.
        """
        stub = self._calls.next_stub().current()
        metadata = with_trace_context(self._calls.metadata)
        stream = stub.emission("WatchSession", self._request, metadata=metadata)
        try:
            async with asyncio.timeout(self._calls.left_s(deadline_s)):
                first = await self._read(stream)
        except BaseException as error:
            stream.cancel()
            if not isinstance(error, TimeoutError):
                raise
            self._calls.suspect(stream)
            raise DeadlinePassed("the server did not answer in time") from None
        self._stream = stream
        return WatchedChunk(first)

    async def _read(self, stream: Stream) -> pb.WatchSessionResponse:
        try:
            message = await stream.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except asyncio.CancelledError as error:
            raise self._calls.lifetime.explain(error) from None
        if message is grpc.aio.EOF:
            raise SessionNotFound("the watch has ended")
        found: pb.WatchSessionResponse = message
        return found

    def _resumed(self, first: WatchedChunk) -> WatchedChunk | None:
        """Returns what the first reply of a further call says that is not known; None if it is nothing."""
        last = self._last
        if last is None:
            return first
        if (first.position, first.incarnation) == (last.position, last.incarnation):
            return None
        first.skipped_tokens = max(0, first.position - last.position)
        return first


def watched(
    runner: Runner, chunks: AsyncGenerator[WatchedChunk, None]
) -> Generator[WatchedChunk, None, None]:
    """Yields what a watch gives, for a thread without an event loop."""
    leave = functools.partial(_leave, chunks)
    try:
        while (chunk := runner.run(_next(chunks))) is not None:
            yield chunk
    finally:
        try:
            runner.post(leave)
        except BaseException:  # an interrupt: else the call would go on until the client is closed
            runner.post(leave)
            raise


async def _next(chunks: AsyncGenerator[WatchedChunk, None]) -> WatchedChunk | None:
    return await anext(chunks, None)


def _leave(chunks: AsyncGenerator[WatchedChunk, None]) -> None:
    """Ends a watch; its task needs nobody who refers to it."""
    task = asyncio.get_running_loop().create_task(_close(chunks))
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)


async def _close(chunks: AsyncGenerator[WatchedChunk, None]) -> None:
    await chunks.aclose()


_leaving: set[asyncio.Task[None]] = set()


def _end_of(last: WatchedChunk) -> WatchedChunk:
    """Returns the end of a session that was gone when its watch was to go on."""
    message = pb.WatchSessionResponse(position=last.position, incarnation=last.incarnation, ended=True)
    return WatchedChunk(message)
