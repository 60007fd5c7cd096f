"""A session as its writer sees it: tokens in, replies out; positions, retries and resending inside.

Every chunk carries its position, so sending it again is always safe; what is not answered is kept in
`_unanswered` and sent again, with the same boundaries, until it is. The server keeps the replies of all
chunks after the acknowledged position, so each resent chunk gets the reply it would have had.

What was answered is kept too, as far as `replay_tokens` reach. A store that has lost some of it, or the
whole session, gets it again, and the outputs are those of a store that lost nothing. Only a loss is made
good: a session that was taken over, opened again or closed by others stays theirs, and since nobody can
tell such a takeover from the loss of one's own, SessionClosed is always raised.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from numpy.typing import NDArray

from holdfast.ack_levels import to_number
from holdfast.errors import (
    Draining,
    HoldfastError,
    InternalFailure,
    PositionGap,
    ServerUnavailable,
    SessionLost,
    StoreRegressed,
    from_call,
    from_rpc,
    from_status,
)
from holdfast.farewell import say_farewell
from holdfast.replay_buffer import ReplayBuffer
from holdfast.reply import StepReply
from holdfast.tokens import TokenSource, normalise, selection, split, to_arrays, to_message
from holdfast.v1 import holdfast_pb2 as pb

if TYPE_CHECKING:
    from holdfast.aio import AsyncClient

MAX_IN_FLIGHT = 32
MAX_IN_FLIGHT_REPLY_BYTES = 32 * 1024
"""Half of what the server keeps of unacknowledged replies."""

HEAL_CHUNK_TOKENS = 64

CLOSED_KNOWN_S = 3600.0
"""So long a server knows of a closed session that it was closed; later it looks as if it were lost."""

Pieces = TokenSource | Iterable[TokenSource] | AsyncIterable[TokenSource]


class _Sent:
    """A chunk on its way, and its tokens."""

    def __init__(self, chunk: pb.Chunk, tokens: bytes | NDArray[Any]) -> None:
        self.chunk = chunk
        self.tokens = tokens
        self.number = 0  # of its last sending, in the history


class AsyncSession:
    """One writer's session. Made by `AsyncClient.session`.

    Not for concurrent use: calls wait for each other. Leaving it as a context manager ends its use
    here; the session itself lives on in the store until `close` or its expiry.

    Attributes:
        session_id: Its id.
        model: Name of its model.
        model_version: Version of its model.
        resumed: It existed when it was opened here.
    """

    def __init__(
        self,
        client: "AsyncClient",
        stub: Any,
        reply: pb.OpenSessionResponse,
        initial_state: Sequence[pb.NamedTensor],
        replay_tokens: int,
    ) -> None:
        self._client = client
        self._stub = stub
        self._incarnation: int = reply.session.incarnation
        self._position: int = reply.session.position
        self._unanswered: deque[_Sent] = deque()
        self._buffer = ReplayBuffer(replay_tokens)
        self._lock = asyncio.Lock()
        self._tag = 0
        self._reply_bytes = 0
        self._deadline_s = 0.0
        self._initial_state = initial_state
        self._heard_s = time.monotonic()
        self._lives_s: float = reply.session.expires_in_s or CLOSED_KNOWN_S
        self.session_id: str = reply.session.session_id
        self.model: str = reply.session.model.name
        self.model_version: int = reply.session.model.version
        self.resumed: bool = reply.resumed

    @property
    def position(self) -> int:
        """Tokens applied and answered."""
        return self._position

    @property
    def incarnation(self) -> int:
        """Number of this life of the session."""
        return self._incarnation

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Does nothing: the session outlives its user."""

    async def step(
        self,
        tokens: TokenSource,
        *,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: bool | Sequence[str] | None = None,
        state: bool = False,
        ack_level: str | None = None,
        timeout_s: float | None = None,
    ) -> StepReply:
        """Applies one chunk and returns its reply.

        Args:
            tokens: k >= 1 tokens: str or bytes, ids, or float32 features (k, width).
            top_k: So many likeliest next tokens after each token.
            token_log_prob: Log-probability of each token.
            outputs: Names of output tensors, or True for all.
            state: The state after the chunk.
            ack_level: How durable the commit must be before the reply; default is the client's.
            timeout_s: Longest wait, retries included; default is the client's.

        Raises:
            HoldfastError: See `holdfast.errors`. Whatever is raised, the position stays right: a chunk
                whose fate is unknown is settled before the next one.
        """
        chosen = selection(top_k, token_log_prob, outputs, state)
        level = to_number(self._client.ack_level if ack_level is None else ack_level)
        self._client.check()
        async with self._lock:
            deadline_s = self._client.deadline_s(timeout_s)
            await self._settle(deadline_s)
            sent = self._make(normalise(tokens), chosen, level)
            self._unanswered.append(sent)
            return await self._finish(sent, deadline_s)

    async def stream(
        self,
        tokens: Pieces,
        *,
        chunk: int = 1,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: bool | Sequence[str] | None = None,
        state: bool = False,
        ack_level: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StepReply]:
        """Applies many chunks, several under way at a time, and yields their replies in order.

        Args:
            tokens: Tokens as in `step`, or an iterable or async iterable of such pieces.
            chunk: Most tokens sent together.
            top_k: As in `step`, as are the other selections.
            token_log_prob: As in `step`.
            outputs: As in `step`.
            state: As in `step`.
            ack_level: As in `step`.
            timeout_s: Longest time without any progress; default is the client's.

        Raises:
            HoldfastError: As in `step`.
        """
        chosen = selection(top_k, token_log_prob, outputs, state)
        level = to_number(self._client.ack_level if ack_level is None else ack_level)
        self._client.check()
        async with self._lock:
            self._deadline_s = self._client.deadline_s(timeout_s)
            await self._settle(self._deadline_s)
            source = _Source(_pieces(tokens, chunk))
            attempt = 0
            while not (source.is_empty and not self._unanswered):
                try:
                    async for reply in self._stream_once(source, chosen, level, timeout_s, attempt):
                        attempt = 0
                        yield reply
                except HoldfastError as error:
                    attempt += 1
                    self._note_failure(error)
                    await self._recover(error, attempt, self._deadline_s)

    async def state(self) -> dict[str, NDArray[Any]]:
        """Returns the stored state by name, without a batch axis."""
        request = pb.GetSessionRequest(session_id=self.session_id, include_state=True)
        return to_arrays((await self._client.call("GetSession", request)).state)

    async def close(self) -> None:
        """Ends the session in the store and forgets its state."""
        request = pb.CloseSessionRequest(session_id=self.session_id, incarnation=self._incarnation)
        await self._client.call("CloseSession", request)

    # -- one chunk ----------------------------------------------------------------------------

    async def _settle(self, deadline_s: float) -> None:
        """Makes sure that chunks sent earlier and never answered are applied."""
        while self._unanswered:
            await self._finish(self._unanswered[0], deadline_s)

    async def _finish(self, sent: _Sent, deadline_s: float) -> StepReply:
        """Sends a chunk until it is answered; a refusal that changed nothing takes it back."""
        attempt = 0
        while True:
            try:
                request = pb.StepRequest(chunk=sent.chunk)
                until_s = self._client.attempt_deadline_s(attempt, deadline_s)
                result = (await self._client.call_once("Step", request, until_s, self._stub)).result
            except HoldfastError as error:
                attempt += 1
                await self._recover(error, attempt, deadline_s)
            else:
                return self._answered(sent, result)

    def _answered(self, sent: _Sent, result: pb.ChunkResult) -> StepReply:
        assert sent is self._unanswered[0], "bug: replies come in order"
        expected = (sent.chunk.session_id, sent.chunk.position + len(sent.tokens))
        if (result.session_id, result.position) != expected:
            raise HoldfastError(f"reply {result.session_id} {result.position}, expected {expected}")
        self._unanswered.popleft()
        self._buffer.append(sent.chunk.position, sent.tokens)
        self._position = result.position
        self._heard_s = time.monotonic()
        self._reply_bytes = result.ByteSize()
        return StepReply(result)

    def _make(self, tokens: bytes | NDArray[Any], chosen: pb.OutputSelection | None, level: Any) -> _Sent:
        self._tag += 1
        before = self._unanswered[-1] if self._unanswered else None
        position = before.chunk.position + len(before.tokens) if before else self._position
        chunk = pb.Chunk(
            session_id=self.session_id,
            model=pb.ModelRef(name=self.model, version=self.model_version),
            tokens=to_message(tokens),
            position=position,
            acknowledged_position=self._position,
            incarnation=self._incarnation,
            outputs=chosen,
            ack_level=level,
            tag=self._tag,
        )
        return _Sent(chunk, tokens)

    # -- when something fails -----------------------------------------------------------------

    async def _recover(self, error: HoldfastError, attempt: int, deadline_s: float) -> None:
        """Returns when the unanswered chunks may be sent again; else raises.

        Raises:
            HoldfastError: The error is final, or the time is up.
        """
        if isinstance(error, StoreRegressed) and error.expected_position is not None:
            await self._resend(error.expected_position, error, deadline_s)
        elif isinstance(error, SessionLost) and self._can_reopen():
            await self._reopen(error, deadline_s)
        elif error.retryable:
            self._stub = self._client.next_stub()
            if attempt > 1 or not _is_end_of_stream(error):
                await self._client.pause(error, attempt, deadline_s)
        else:
            if not isinstance(error, InternalFailure):  # the server does not know what became of it
                self._unanswered.clear()
            raise error

    async def _resend(self, position: int, error: HoldfastError, deadline_s: float) -> None:
        """Sends the tokens again that the store has lost; their replies were had before.

        The level is `memory`: the chunk that found out is sent once more, and its acknowledgement covers
        everything before it. It also finds out if the store loses something again meanwhile.

        Raises:
            HoldfastError: The given one, if the tokens are no longer kept.
        """
        try:
            lost = self._buffer.since(position, HEAL_CHUNK_TOKENS) if self._position else []
        except LookupError:
            raise error from None
        with contextlib.suppress(PositionGap, SessionLost):
            for start, tokens in lost:
                await self._apply_again(start, tokens, deadline_s)

    async def _apply_again(self, position: int, tokens: bytes | NDArray[Any], deadline_s: float) -> None:
        chunk = pb.Chunk(
            session_id=self.session_id,
            tokens=to_message(tokens),
            position=position,
            incarnation=self._incarnation,
            outputs=pb.OutputSelection(),
            ack_level=pb.ACK_LEVEL_MEMORY,
        )
        await self._client.call("Step", pb.StepRequest(chunk=chunk), deadline_s=deadline_s)

    def _can_reopen(self) -> bool:
        """Whether a session that is gone was lost by the store, and can be made again.

        Not one that was resumed, whose first state is not known, or whose first tokens are no longer kept;
        and not one that was silent for so long that it may have expired, or been closed by others so long
        ago that this is forgotten.
        """
        silent_s = time.monotonic() - self._heard_s
        if self.resumed or silent_s >= min(self._lives_s, CLOSED_KNOWN_S):
            return False
        return self._position == 0 or self._buffer.reaches(0)

    async def _reopen(self, error: SessionLost, deadline_s: float) -> None:
        """Opens the session anew, from the state it was opened with, and sends all its tokens again."""
        request = pb.OpenSessionRequest(
            session_id=self.session_id,
            model=pb.ModelRef(name=self.model, version=self.model_version),
            initial_state=self._initial_state,
        )
        opened = await self._client.call("OpenSession", request, deadline_s=deadline_s)
        if opened.resumed and not await self._is_fresh(deadline_s):
            self._unanswered.clear()
            raise error
        self._incarnation = opened.session.incarnation
        for sent in self._unanswered:
            sent.chunk.incarnation = self._incarnation
        await self._resend(0, error, deadline_s)

    async def _is_fresh(self, deadline_s: float) -> bool:
        """Whether the session stands where it was opened: made by a call whose reply did not come."""
        request = pb.GetSessionRequest(session_id=self.session_id, include_state=True)
        reply = await self._client.call("GetSession", request, deadline_s=deadline_s)
        given = {named.name: named.tensor.data for named in self._initial_state}
        return reply.session.position == 0 and all(
            named.tensor.data == given.get(named.name, bytes(len(named.tensor.data)))
            for named in reply.state
        )

    # -- many chunks --------------------------------------------------------------------------

    async def _stream_once(
        self,
        source: "_Source",
        chosen: pb.OutputSelection | None,
        level: Any,
        timeout_s: float | None,
        attempt: int,
    ) -> AsyncIterator[StepReply]:
        """Streams over one call until the source is empty and all is answered, or something fails.

        The time limit starts anew with every reply, and with a chunk sent when none was under way: a
        source may be silent for as long as it likes.
        """
        call = self._stub.StreamSteps(metadata=self._client.metadata)
        reading: asyncio.Task[Any] | None = None
        try:
            for sent in self._unanswered:
                sent.chunk.acknowledged_position = self._position
                await self._write(call, sent)
            while self._unanswered or not source.is_empty:
                if reading is None and self._unanswered:
                    reading = asyncio.create_task(call.read())
                if len(self._unanswered) < self._window() and not source.is_empty:
                    tokens = await source.next_or(reading)
                    if tokens is not None:
                        if not self._unanswered:
                            self._deadline_s = self._client.deadline_s(timeout_s)
                        sent = self._make(tokens, chosen, level)
                        self._unanswered.append(sent)
                        await self._write(call, sent)
                        continue
                    if reading is None:
                        continue
                assert reading is not None
                until_s = self._client.attempt_deadline_s(attempt, self._deadline_s)
                left_s = self._client.left_s(until_s)
                message = await asyncio.wait_for(asyncio.shield(reading), left_s)
                reading = None
                reply = self._take(message)
                self._deadline_s = self._client.deadline_s(timeout_s)
                yield reply
            await say_farewell(call)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except TimeoutError:
            self._client.suspect(call)
            raise ServerUnavailable("no reply within the time limit", code="UNAVAILABLE") from None
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            call.cancel()

    async def _write(self, call: Any, sent: _Sent) -> None:
        """Sends a chunk.

        Raises:
            HoldfastError: The stream had ended before.
            grpc.aio.AioRpcError: It ends now.
        """
        request = pb.StreamStepsRequest(chunk=sent.chunk)
        if self._client.history is not None:
            sent.number = self._client.history.sent("StreamSteps", request)
        try:
            await call.write(request)
        except asyncio.InvalidStateError:
            raise await from_call(call) from None

    def _note_failure(self, error: HoldfastError) -> None:
        """Notes in the history what happened to the chunk that was to be answered next."""
        if self._client.history is not None and self._unanswered:
            self._client.history.failed(self._unanswered[0].number, error)

    def _take(self, reply: Any) -> StepReply:
        if reply is grpc.aio.EOF:
            raise ServerUnavailable("the server ended the stream", code="UNAVAILABLE")
        if reply.WhichOneof("outcome") == "error":
            raise from_status(reply.error.status)
        sent = self._unanswered[0]
        if reply.result.tag != sent.chunk.tag:
            raise HoldfastError(f"reply {reply.result.tag} came for chunk {sent.chunk.tag}")
        if self._client.history is not None:
            self._client.history.got(sent.number, reply)
        return self._answered(sent, reply.result)

    def _window(self) -> int:
        """Chunks that may be under way: one until the size of a reply is known."""
        if not self._reply_bytes:
            return 1
        return max(1, min(MAX_IN_FLIGHT, MAX_IN_FLIGHT_REPLY_BYTES // self._reply_bytes))


def _is_end_of_stream(error: HoldfastError) -> bool:
    """Whether a stream has ended in a way that lets it be begun anew at once, if not twice in a row."""
    if isinstance(error, Draining):
        return error.is_goodbye
    return isinstance(error, ServerUnavailable) and error.hides_status


class _Source:
    """The pieces still to be sent; a piece that is waited for does not hold up replies."""

    def __init__(self, pieces: AsyncIterator[bytes | NDArray[Any]]) -> None:
        self._pieces = pieces
        self._next: asyncio.Future[Any] | None = None
        self.is_empty = False

    async def next_or(self, other: asyncio.Task[Any] | None) -> bytes | NDArray[Any] | None:
        """Returns the next piece; None if `other` is done first or there is none."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._fetch())
        waiting = {self._next} if other is None else {self._next, other}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._next.done():
            return None
        piece: bytes | NDArray[Any] | None = self._next.result()
        self._next = None
        self.is_empty = piece is None
        return piece

    async def _fetch(self) -> bytes | NDArray[Any] | None:
        return await anext(self._pieces, None)


async def _pieces(tokens: Pieces, size: int) -> AsyncIterator[bytes | NDArray[Any]]:
    if isinstance(tokens, AsyncIterable):
        async for part in tokens:
            for piece in split(part, size):
                yield piece
        return
    parts: Iterable[Any] = [tokens] if _is_whole(tokens) else tokens
    for part in parts:
        for piece in split(part, size):
            yield piece


def _is_whole(tokens: Any) -> bool:
    """Tells one run of tokens from an iterable of pieces."""
    if isinstance(tokens, str | bytes | bytearray | memoryview) or hasattr(tokens, "dtype"):
        return True
    return isinstance(tokens, list | tuple) and all(isinstance(token, int) for token in tokens)
