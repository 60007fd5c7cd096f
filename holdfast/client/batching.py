"""The next tokens of many sessions in one message: for gateways and backfills."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import grpc.aio
import numpy as np

from holdfast.client.ack_levels import to_number
from holdfast.client.batch_reply import BatchReply
from holdfast.client.calls import Calls
from holdfast.client.farewell import say_farewell
from holdfast.client.fate import tell_rows
from holdfast.client.history import Recorder
from holdfast.client.options import (
    Outputs,
    SessionId,
    cursors_bytes,
    selection,
    session_ids_text,
    whole_number,
)
from holdfast.client.rows import Rows, normalise_rows
from holdfast.client.standing import Positions, standing_of
from holdfast.client.status import from_rpc, from_status
from holdfast.client.unanswered import Unanswered
from holdfast.errors import (
    ClientClosed,
    Draining,
    HoldfastError,
    PositionGap,
    ServerUnavailable,
    StoreRegressed,
)
from holdfast.v1 import holdfast_pb2 as pb

POLL_S = 1.0
"""While no batch waits for a reply, so often is looked whether one does."""


class BatchPipeline:
    """Sends batches ahead of their replies, over one stream. Made by `AsyncClient.batches`.

    When the connection breaks, or no reply comes in time, every batch under way fails with
    ServerUnavailable, and the next `submit` connects anew. Rows sent again, in the same order and with the
    positions they had, are answered as the first time, also where several batches of the same sessions were
    lost: a batch says up to where the replies of its sessions have come, and the server keeps those after
    it. A server that leaves, or asks for a new connection, says which batches it has not read, and these go
    to another one by themselves.

    A pipeline keeps no tokens, so what the store has lost is the caller's to send again: a row of `errors`
    with StoreRegressed says from where, as `expected_position`.
    """

    def __init__(self, calls: Calls, options: dict[str, Any], max_in_flight: int) -> None:
        self._calls = calls
        self._options = options
        self._room = asyncio.Semaphore(max_in_flight)
        self._sending = asyncio.Lock()
        self._waiting: deque[_Sent] = deque()
        self._unanswered = Unanswered()
        self._stream: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._heard_s = 0.0
        self._silences = 0

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for the replies under way and ends the stream."""
        await asyncio.gather(*(sent.reply for sent in self._waiting), return_exceptions=True)
        if self._stream is not None:
            await say_farewell(self._stream)
        if self._stream is not None:  # it has not ended by itself
            self._stream.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def submit(
        self,
        session_ids: Iterable[SessionId],
        tokens: Rows,
        positions: Positions | None = None,
        *,
        cursors: Sequence[bytes | None] | None = None,
    ) -> asyncio.Future[BatchReply]:
        """Sends one batch; waits only while `max_in_flight` of them are under way.

        Args:
            session_ids: B distinct ids, of sessions that exist.
            tokens: T tokens for each.
            positions: Tokens each session has consumed before, as numbers; or an `OpenedBatch` or
                `BatchReply` of the same sessions in the same order. None appends, not safe to send again.
            cursors: As in `AsyncClient.step_batch`.

        Returns:
            Future of the reply. It raises HoldfastError if the batch was refused as a whole, the
            connection broke or the client was closed.

        Raises:
            ValueError: It is not one position for each session, or not the same number of tokens.
            ClientClosed: The client is closed.
        """
        self._calls.lifetime.check_before_sending()
        batch = batch_message(session_ids, tokens, positions, cursors=cursors, **self._options)
        await self._room.acquire()
        reply: asyncio.Future[BatchReply] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda _: self._room.release())
        try:
            await self._submit(batch, reply)
        except BaseException:
            reply.cancel()
            raise
        return reply

    async def _submit(self, batch: pb.Batch, reply: asyncio.Future[BatchReply]) -> None:
        async with self._sending:
            sent = self._note(batch, reply)
            if self._calls.history is not None:
                request = pb.StreamBatchesRequest(batch=batch)
                _record(reply, self._calls.history, self._calls.history.sent("StreamBatches", request))
            await self._send(sent)

    def _note(self, batch: pb.Batch, reply: asyncio.Future[BatchReply]) -> "_Sent":
        """Writes into a batch how far its sessions are answered, where they send ahead."""
        positions = list(batch.positions)
        if not positions:
            return _Sent(reply, batch, None)
        answered = self._unanswered.send(batch.session_ids, positions)
        if answered != positions:
            batch.acknowledged_positions.extend(answered)
        return _Sent(reply, batch, answered)

    async def _send(self, sent: "_Sent") -> None:
        """Sends a batch, on a new call if there is none; one that ends meanwhile is for its reader."""
        if self._stream is None:
            self._stream = self._calls.next_stub().StreamBatches(metadata=self._calls.metadata)
            self._reader = asyncio.create_task(self._read(self._stream, self._waiting))
        if not self._waiting:
            self._heard_s = time.monotonic()
        self._waiting.append(sent)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, ClientClosed):
            await self._stream.write(pb.StreamBatchesRequest(batch=sent.batch))

    async def _read(self, call: Any, waiting: "deque[_Sent]") -> None:
        """Settles the batches sent on one call, and no others: a later call has a line of its own."""
        answered_count = 0
        error: HoldfastError = ServerUnavailable("the server ended the stream")
        try:
            while (message := await self._next_message(call, waiting)) is not grpc.aio.EOF:
                self._settle(waiting.popleft(), message)
                answered_count += 1
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure)
        except ClientClosed as failure:
            error = failure
        except TimeoutError:
            error = ServerUnavailable("no reply within the time limit")
            self._calls.suspect(call)
            call.cancel()  # also ends a write that waits for room
        except asyncio.CancelledError:
            error = ServerUnavailable("the stream was cut")
        if self._calls.lifetime.is_over:
            error = ClientClosed("the client was closed during the stream")
        async with self._sending:
            self._stream = None
            self._waiting = deque()
            for sent in waiting:
                if _goes_on(error, sent, answered_count):
                    await self._send(sent)
                else:
                    self._fail(sent, error)

    async def _next_message(self, call: Any, waiting: "deque[_Sent]") -> Any:
        """Returns what comes next.

        Raises:
            TimeoutError: It did not come in time, though batches wait for it.
        """
        reading = asyncio.ensure_future(call.read())
        try:
            while not reading.done():
                left_s = self._limit_s(waiting) - (time.monotonic() - self._heard_s) if waiting else POLL_S
                if left_s <= 0:
                    self._silences += 1
                    raise TimeoutError
                await asyncio.wait({reading}, timeout=left_s)
            self._heard_s, self._silences = time.monotonic(), 0
            return reading.result()
        finally:
            reading.cancel()

    def _limit_s(self, waiting: "deque[_Sent]") -> float:
        """Longest wait for a reply: the whole time limit, if it is not safe to send the rows again."""
        now_s = time.monotonic()
        until_s = self._calls.deadline_s(None)
        if waiting[0].answered is not None:
            until_s = self._calls.attempt_deadline_s(self._silences, until_s)
        return until_s - now_s

    def _fail(self, sent: "_Sent", error: HoldfastError) -> None:
        if sent.answered is not None:
            self._unanswered.lose(sent.batch.session_ids)
        if not sent.reply.done():
            tell_rows(error, has_positions=sent.answered is not None)
            sent.reply.set_exception(error)

    def _settle(self, sent: "_Sent", message: pb.StreamBatchesResponse) -> None:
        batch = sent.batch
        if sent.answered is not None:
            self._unanswered.answer(batch.session_ids, batch.positions, batch.tokens_per_row)
        if sent.reply.done():
            return
        if message.WhichOneof("outcome") == "error":
            sent.reply.set_exception(from_status(message.error.status))
            return
        reply = BatchReply(message.result, batch.session_ids)
        for row, error in reply.errors.items():
            if sent.answered is not None and isinstance(error, PositionGap):
                reply.errors[row] = _gap_or_loss(error, sent.answered[row])
        sent.reply.set_result(reply)


class _Sent(NamedTuple):
    """A batch on its way; `answered` is how far its sessions were answered, None without positions."""

    reply: asyncio.Future[BatchReply]
    batch: pb.Batch
    answered: list[int] | None


def _record(reply: asyncio.Future[BatchReply], history: Recorder, number: int) -> None:
    """Notes in the history what comes of a batch."""

    def settled(_: asyncio.Future[BatchReply]) -> None:
        if reply.cancelled():
            history.failed(number, asyncio.CancelledError())
        elif (error := reply.exception()) is not None:
            history.failed(number, error)
        else:
            history.got(number, pb.StreamBatchesResponse(result=reply.result().message))

    reply.add_done_callback(settled)


def _goes_on(error: HoldfastError, sent: _Sent, answered_count: int) -> bool:
    """Whether a batch that had no reply when its stream ended is sent again.

    After a goodbye the server has not read it. An end that came while a batch was written hides what the
    server said: then rows with positions are safe to send again, on a stream that had worked.
    """
    if isinstance(error, Draining) and error.is_goodbye:
        return True
    was_hidden = isinstance(error, ServerUnavailable) and error.hides_status
    return was_hidden and answered_count > 0 and bool(sent.batch.positions)


def _gap_or_loss(error: PositionGap, answered: int) -> HoldfastError:
    """Tells tokens that were never sent from those that the store has lost after it acknowledged them."""
    if error.expected_position is None or error.expected_position >= answered:
        return error
    message = f"replies up to position {answered} were had: {error}"
    return StoreRegressed(message, expected_position=error.expected_position, metadata=error.metadata)


def batch_message(
    session_ids: Iterable[SessionId],
    tokens: Rows,
    positions: Positions | None,
    *,
    model: str,
    cursors: Sequence[bytes | None] | None = None,
    version: int = 0,
    top_k: int | None = None,
    token_log_prob: bool = False,
    outputs: Outputs = None,
    ack_level: str | None = None,
) -> pb.Batch:
    """Writes the rows.

    Raises:
        TypeError, ValueError: Something is not what it should be; see docs/guides/inputs.md.
    """
    ids = session_ids_text(session_ids)
    standing = standing_of(ids, positions)
    batch = pb.Batch(
        model=pb.ModelRef(name=model, version=whole_number("version", version, at_least=0)),
        session_ids=ids,
        positions=standing.positions,
        incarnations=standing.incarnations,
        history_digests=standing.history_digests,
        outputs=selection(top_k, token_log_prob, outputs, state=False),
        ack_level=to_number(ack_level),
        cursors=cursors_bytes(cursors, len(ids)),
    )
    rows = normalise_rows(tokens, len(ids))
    if isinstance(rows, bytes):
        batch.tokens_per_row = len(rows) // len(ids)
        batch.text = rows
    elif rows.dtype == np.int64:
        batch.tokens_per_row = rows.shape[1]
        batch.ids.values.extend(rows.ravel().tolist())
    else:
        batch.tokens_per_row = rows.shape[1]
        batch.features = rows.astype("<f4", copy=False).tobytes()
    return batch
