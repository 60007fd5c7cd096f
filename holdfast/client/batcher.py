"""Sends the chunks of many sessions together: those that come while a message is under way go in the next.

Most of what a token costs is a gRPC message of its own. Callers who wait at the same time share one: a
chunk that comes alone leaves at once, and those that come while a message is under way leave together. So
batches grow with the load, and nobody waits for a timer.

Each row has its own time limit, is given up alone, and fails alone. A message that is refused as a whole is
sent again in halves: no row suffers for what another one asks.
"""

import asyncio
import contextlib
import copy
import math
import time
from collections import deque
from typing import Any

import grpc.aio
import numpy as np

from holdfast.client.batch_reply import BatchReply, RowReply
from holdfast.client.calls import Calls
from holdfast.client.farewell import say_farewell
from holdfast.client.fate import leaves_unsure
from holdfast.client.ledger import Kind, Row
from holdfast.client.reply import StepReply
from holdfast.client.status import from_rpc, from_status
from holdfast.errors import (
    ClientClosed,
    DeadlinePassed,
    HoldfastError,
    MessageTooLarge,
    Overloaded,
    ServerUnavailable,
)
from holdfast.v1 import holdfast_pb2 as pb

MAX_ROWS = 256
MAX_TOKENS = 4096
"""Of one message: so many tokens take a server some ten milliseconds, for which others wait."""

MAX_BOUNDS = 256
"""Kinds whose bounds on rows are kept."""

MAX_BYTES = 1 << 20
"""Of the tokens of one message."""

MAX_UNDER_WAY = 2
"""Messages of one pace of which nothing has come back: the server works on one, the other is on its way."""

SPLIT_ROWS = 128
"""So many rows leave in two halves: callers take the replies to one while the server works on the other."""

LATE_S = 0.05
"""A message is not waited for any longer before others leave."""

FIRST_RENEW_S, RENEW_S = 0.25, 32.0
"""So long a stream is used where there are several replicas: at first a moment, since connections come up
one after the other, then twice as long each time."""

IDLE_S = 1.0
"""A stream without anything under way is ended after so long: while it is open, gRPC is in use."""

Reply = asyncio.Future[StepReply | None]


class Sent:
    """A row whose reply somebody waits for.

    Args:
        kind: What it has in common with others of a message.
        row: The row.
        batcher: Sends it.

    Attributes:
        reply: Of the row; None where it has to be sent alone. Raises HoldfastError.
        until_s: Monotonic time at which it is given up.
        since_s: Monotonic time at which it was taken, or sent.
    """

    __slots__ = ("_batcher", "kind", "reply", "row", "since_s", "until_s")

    def __init__(self, kind: Kind, row: Row, batcher: "Batcher", reply: Reply) -> None:
        self._batcher = batcher
        self.kind = kind
        self.row = row
        self.reply = reply
        self.until_s = math.inf
        self.since_s = time.monotonic()

    def limit(self, until_s: float) -> None:
        """Sets when it is given up."""
        self.until_s = until_s
        self._batcher.wake_at(until_s)


class _Message:
    """Rows on their way."""

    __slots__ = ("is_answered", "kind", "number", "rows", "sent_s", "size_bytes")

    def __init__(self, kind: Kind, rows: list[Sent], sent_s: float) -> None:
        self.kind = kind
        self.rows = rows
        self.sent_s = sent_s
        self.size_bytes = 0
        self.is_answered = False  # some rows are
        self.number = 0  # in the recorded history

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(waiting.reply.done() for waiting in self.rows)


class _Line:
    """A stream, and the messages on it with rows that have no reply, by tag."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.messages: dict[int, _Message] = {}
        self.tag = 0
        self.opened_s = time.monotonic()
        self.reader: asyncio.Task[None] | None = None
        self.writer: asyncio.Task[None] | None = None
        self.is_answered = False

    def forget(self) -> None:
        """Forgets the messages that nobody waits for any more."""
        self.messages = {tag: message for tag, message in self.messages.items() if not message.is_settled}


class Batcher:
    """The chunks that go over one connection. Lives on the client's event loop.

    Args:
        calls: Of the client.
        stub: Of the connection.
        renews: A stream is replaced now and then, so that replicas which came later get some.
    """

    def __init__(self, calls: Calls, stub: Any, *, renews: bool = False) -> None:
        self._renew_s = FIRST_RENEW_S if renews else math.inf
        self._calls = calls
        self._stub = stub
        self._loop = asyncio.get_running_loop()
        self._queues: dict[Kind, deque[Sent]] = {}
        self._behind: dict[str, deque[Sent] | None] = {}
        self._unanswered: dict[Sent, None] = {}
        self._line: _Line | None = None
        self._left: set[_Line] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = 0.0
        self._most_rows: dict[Kind, int] = {}
        self._most_bytes = MAX_BYTES

    @property
    def is_in_use(self) -> bool:
        """Whether it has a stream, or rows without a reply."""
        return self._line is not None or bool(self._unanswered or self._left)

    def submit(self, kind: Kind, row: Row) -> Sent:
        """Takes a row. Those of a session go one after the other, in messages of their own."""
        waiting = Sent(kind, row, self, self._loop.create_future())
        self._unanswered[waiting] = None
        if row.session_id in self._behind:
            followers = self._behind[row.session_id]
            if followers is None:
                followers = self._behind[row.session_id] = deque()
            followers.append(waiting)
        else:
            self._behind[row.session_id] = None
            self._enter(waiting)
        return waiting

    def open(self) -> None:
        """Opens the stream, unless it is open."""
        with contextlib.suppress(HoldfastError):  # the first chunk says so
            self._open_line()
            self.wake_at(time.monotonic() + IDLE_S)

    async def close(self) -> None:
        """Ends the stream in good form, if nothing is under way."""
        if self._alarm is not None:
            self._alarm.cancel()
        line, self._line = self._line, None
        if line is not None and not line.messages:
            await say_farewell(line.stream)

    # -- sending ------------------------------------------------------------------------------

    def _enter(self, waiting: Sent) -> None:
        queue = self._queues.get(waiting.kind)
        if queue is None:
            self._queues[waiting.kind] = deque([waiting])
        else:
            queue.append(waiting)
        self._go()

    def _go(self) -> None:
        """Has what waits sent, after what else happens in this turn of the loop."""
        if self._sender is None and self._next_kind() is not None:
            self._sender = self._loop.create_task(self._send())

    def _next_kind(self) -> Kind | None:
        """Returns of which rows a message may leave now; sees to it that others may soon."""
        return next((kind for kind in self._queues if self._has_room(kind)), None)

    def _has_room(self, kind: Kind) -> bool:
        if self._line is None or len(self._line.messages) < MAX_UNDER_WAY:
            return True
        since_s = time.monotonic() - LATE_S
        recent = [
            message.sent_s
            for message in self._line.messages.values()
            if not message.is_answered and message.sent_s > since_s and message.kind.pace == kind.pace
        ]
        if len(recent) < MAX_UNDER_WAY:
            return True
        self.wake_at(recent[0] + LATE_S)
        return False

    async def _send(self) -> None:
        me = asyncio.current_task()
        try:
            while self._sender is me and (kind := self._next_kind()) is not None:
                message = self._next_message(kind)
                if message.rows:
                    await self._write(message)
        finally:
            if self._sender is me:
                self._sender = None

    def _next_message(self, kind: Kind) -> _Message:
        """Takes rows of one kind out of their queue; the kinds take turns."""
        queue = self._queues.pop(kind)
        most = min(self._most_rows.get(kind, MAX_ROWS), max(1, MAX_TOKENS // kind.token_count))
        most = min(most, max(1, self._most_bytes // (kind.token_count * max(1, kind.width) * 4)))
        if len(queue) >= SPLIT_ROWS and (self._line is None or not self._line.messages):
            most = min(most, len(queue) // 2)
        rows: list[Sent] = []
        freed = []
        while queue and len(rows) < most:
            waiting = queue.popleft()
            followers = self._behind.pop(waiting.row.session_id, None)
            if followers:
                freed.append(followers.popleft())
                self._behind[waiting.row.session_id] = followers or None
            if waiting.reply.done():
                self._unanswered.pop(waiting, None)
            else:
                rows.append(waiting)
        if queue:
            self._queues[kind] = queue
        for follower in freed:
            self._enter(follower)
        return _Message(kind, rows, time.monotonic())

    async def _write(self, message: _Message) -> None:
        try:
            line = self._open_line()
            line.tag += 1
            request = pb.StreamBatchesRequest(batch=_batch(message.rows, line.tag))
            message.size_bytes = request.ByteSize()
            if self._calls.history is not None:
                message.number = self._calls.history.sent("StreamBatches", request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, their callers wait
            self._fail(message, error)
            return
        line.messages[line.tag] = message
        if line.reader is None:
            line.reader = self._loop.create_task(self._read(line))
        line.writer = self._sender
        # how the stream has ended is for its reader to see
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, ClientClosed):
            await line.stream.write(request)
        line.writer = None

    def _open_line(self) -> _Line:
        line = self._line
        if line is not None and time.monotonic() - line.opened_s > self._renew_s:
            self._renew_s = min(2 * self._renew_s, RENEW_S)
            self._leave(line)
        if self._line is None or self._line.stream.is_over:
            self._line = _Line(self._stub.StreamBatches(metadata=self._calls.metadata))
        return self._line

    def _leave(self, line: _Line) -> None:
        """Sends nothing more over a stream, which ends when nothing is under way on it."""
        self._line = None
        if line.writer is not None and self._sender is line.writer:  # it waits for room on this stream
            self._sender = None
        if line.messages:
            self._left.add(line)
        elif line.writer is not None:
            line.writer.cancel()
            line.stream.cancel()
        else:
            self._end_well(line)

    # -- replies ------------------------------------------------------------------------------

    async def _read(self, line: _Line) -> None:
        """Settles messages until none is under way on this stream, or it ends."""
        error: HoldfastError = ServerUnavailable("the server ended the stream")
        try:
            while line.messages:
                reply = await line.stream.read()
                if reply is grpc.aio.EOF:
                    break
                line.is_answered = True
                self._take(line, reply)
                self._go()
            else:
                if line in self._left:
                    self._left.discard(line)
                    self._end_well(line)
                else:
                    self.wake_at(time.monotonic() + IDLE_S)
                return
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure)
        except HoldfastError as failure:
            error = failure
        except asyncio.CancelledError:
            error = ServerUnavailable("the stream was cut")
        except Exception as failure:  # noqa: BLE001 -- whatever it is, their callers wait
            error = HoldfastError(f"a reply to a batch makes no sense: {failure!r}")
            line.stream.cancel()
        finally:
            line.reader = None
        self._end(line, error)

    def _end(self, line: _Line, error: HoldfastError) -> None:
        """Gives up what was under way on a stream that has ended."""
        if self._calls.lifetime.is_over:
            error = ClientClosed("the client was closed during the call")
        if self._line is line:
            self._line = None
        self._left.discard(line)
        if line.writer is not None:  # grpc.aio does not tell everyone who writes that the call is over
            line.writer.cancel()
            if self._sender is line.writer:
                self._sender = None
        # some servers let no more streams in
        was_let_in = line.is_answered or "requests_read" in error.metadata
        too_large = None
        if isinstance(error, MessageTooLarge):  # perhaps only for a stream
            was_let_in = True
            too_large = max(line.messages.values(), key=lambda message: message.size_bytes, default=None)
            if too_large is not None:
                self._most_bytes = max(1024, min(self._most_bytes, too_large.size_bytes) // 2)
        final = error
        if was_let_in and not leaves_unsure(error):  # that is about the stream, not about what was read
            final = ServerUnavailable(f"the stream has ended: {error.message}")
        for message in line.messages.values():
            if message is too_large or (isinstance(final, Overloaded) and not was_let_in):
                self._fail(message, error, goes_alone=True)
            else:
                self._fail(message, final)
        line.messages.clear()
        self._go()

    def _take(self, line: _Line, response: pb.StreamBatchesResponse) -> None:
        """Settles what a reply is about; nothing, if nobody waits for it any more."""
        is_refusal = response.WhichOneof("outcome") == "error"
        tag = response.error.tag if is_refusal else response.result.tag
        message = line.messages.get(tag)
        if message is None:
            return
        if is_refusal:
            del line.messages[tag]
            self._refuse(message, from_status(response.error.status))
        else:
            numbers = response.result.rows
            message.is_answered = True
            self._settle(response.result, [message.rows[row] for row in numbers] or message.rows)
            if message.is_settled:
                del line.messages[tag]
            if message.kind in self._most_rows:
                self._allow(message.kind, self._most_rows[message.kind] + 1)
        if self._calls.history is not None:
            self._calls.history.got(message.number, response)

    def _settle(self, result: pb.BatchResult, rows: list[Sent]) -> None:
        """Gives each row what a reply says of it."""
        batch = BatchReply(result, [waiting.row.session_id for waiting in rows])
        replayed = set(batch.replayed_rows)
        digests = result.history_digests or [0] * len(rows)
        stamps = zip(result.positions, digests, strict=True)
        size_bytes = result.ByteSize() // len(rows)
        unanswered, errors, separate = self._unanswered, batch.errors, batch.separate_rows
        batch.errors = {}  # an error that is raised holds frames, and the replies of others hold the batch
        for row, (waiting, stamp) in enumerate(zip(rows, stamps, strict=True)):
            unanswered.pop(waiting, None)
            if waiting.reply.done():
                continue
            if row in errors:
                waiting.reply.set_exception(errors[row])
            elif row in separate:
                reply = separate[row]
                waiting.reply.set_result(reply if reply.token_count else None)
            else:
                waiting.reply.set_result(
                    RowReply(
                        batch,
                        row,
                        stamp,
                        replayed=row in replayed,
                        token_count=waiting.kind.token_count,
                        size_bytes=size_bytes,
                    )
                )

    def _refuse(self, message: _Message, error: HoldfastError) -> None:
        """Has the rows of a message that was refused as a whole sent in halves; nothing was applied."""
        self._allow(message.kind, max(1, len(message.rows) // 2))
        if len(message.rows) == 1 or error.retryable:
            self._fail(message, error)
            return
        if leaves_unsure(error):  # rows may have been applied, so their callers have to know
            self._fail(message, ServerUnavailable(f"the message had no reply: {error.message}"))
            return
        rows = []
        for waiting in message.rows:
            if waiting.reply.done():
                self._unanswered.pop(waiting, None)
            else:
                rows.append(waiting)
                self._behind.setdefault(waiting.row.session_id, None)
        self._queues[message.kind] = deque([*rows, *self._queues.get(message.kind, ())])

    def _allow(self, kind: Kind, row_count: int) -> None:
        """Bounds the rows of a message: halved by a refusal, one more with every reply."""
        self._most_rows.pop(kind, None)
        if row_count < MAX_ROWS:
            self._most_rows[kind] = row_count
        if len(self._most_rows) > MAX_BOUNDS:
            del self._most_rows[next(iter(self._most_rows))]

    def _fail(self, message: _Message, error: Exception, *, goes_alone: bool = False) -> None:
        """Gives each row its error, or has it sent alone; a history that cannot be written comes last."""
        for waiting in message.rows:
            self._give(waiting, None if goes_alone else _own(error))
        if self._calls.history is not None and message.number:
            self._calls.history.failed(message.number, error)

    def _give(self, waiting: Sent, error: Exception | None) -> None:
        """Ends a row by an error; None: it has to be sent alone."""
        self._unanswered.pop(waiting, None)
        if waiting.reply.done():
            return
        if error is None:
            waiting.reply.set_result(None)
        else:
            waiting.reply.set_exception(error)

    # -- time limits --------------------------------------------------------------------------

    def wake_at(self, until_s: float) -> None:
        """Looks after what is late at that time, or before."""
        if self._alarm is not None:
            if self._alarm_s <= until_s:
                return
            self._alarm.cancel()
        self._alarm_s = until_s
        self._alarm = self._loop.call_later(max(0.0, until_s - time.monotonic()), self._look)

    def _look(self) -> None:
        """Gives up the rows whose time is up; ends the stream if nothing was under way for long."""
        self._alarm = None
        now_s = time.monotonic()
        late = [waiting for waiting in self._unanswered if waiting.reply.done() or waiting.until_s <= now_s]
        for waiting in late:
            silence = DeadlinePassed(
                "no reply within the time limit",
                code="DEADLINE_EXCEEDED",
                metadata={"grpc_code": "DEADLINE_EXCEEDED"},
            )
            if not waiting.reply.done():
                self._suspect(waiting, now_s)
            self._give(waiting, silence)
        if self._line is not None:
            self._line.forget()
        for line in tuple(self._left):
            line.forget()
            if not line.messages:
                self._left.discard(line)
                line.stream.cancel()
        if self._unanswered:
            self.wake_at(min(waiting.until_s for waiting in self._unanswered))
            self._go()
        elif self._line is not None:
            self._end_idle(self._line, now_s)

    def _suspect(self, waiting: Sent, now_s: float) -> None:
        if self._line is None:
            return
        silent_s = now_s - max(waiting.since_s, self._line.stream.since_s)
        if silent_s >= LATE_S:
            self._calls.suspect(self._line.stream, silent_s)
            self._leave(self._line)  # the next one may go to another replica

    def _end_idle(self, line: _Line, now_s: float) -> None:
        left_s = line.stream.since_s + IDLE_S - now_s
        if left_s > 0:
            self.wake_at(now_s + left_s)
        elif not line.messages:
            self._leave(line)

    def _end_well(self, line: _Line) -> None:
        task = self._loop.create_task(say_farewell(line.stream))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _own(error: Exception) -> Exception:
    """Returns an error for one caller: his says what becomes of his own chunk."""
    own = copy.copy(error)
    if isinstance(own, HoldfastError):
        own.metadata = dict(own.metadata)
    return own


def _batch(rows: list[Sent], tag: int) -> pb.Batch:
    """Writes a message."""
    kind = rows[0].kind
    ids, positions, acknowledged, incarnations, digests, tokens = zip(
        *(waiting.row for waiting in rows), strict=True
    )
    batch = pb.Batch(
        model=pb.ModelRef(name=kind.model, version=kind.version),
        session_ids=ids,
        positions=positions,
        acknowledged_positions=acknowledged,
        incarnations=incarnations,
        history_digests=digests,
        tokens_per_row=kind.token_count,
        outputs=kind.asked.selection,
        ack_level=kind.asked.ack_level,
        in_parts=True,
        timeout_s=_timeout_s(rows),
        tag=tag,
    )
    if kind.tokens == "text":
        batch.text = b"".join(tokens)
    elif kind.tokens == "ids":
        batch.ids.values.extend(np.concatenate(tokens).tolist())
    else:
        batch.features = np.concatenate(tokens).astype("<f4", copy=False).tobytes()
    return batch


def _timeout_s(rows: list[Sent]) -> float:
    """Returns how long the longest limit of rows lasts; 0 is no limit."""
    left_s = max(sent.until_s for sent in rows) - time.monotonic()
    return max(0.001, left_s) if left_s < math.inf else 0.0
