"""A stream of batches, and what comes back over it.

Each row fails alone: by an error of its own, or, where the stream ends, by one that says whether it may
have been applied. A row is answered once; who has given it up meanwhile hears nothing of it.
"""

import asyncio
import contextlib
import copy
import time
from typing import Any, Protocol

import grpc.aio

from holdfast.client.batch_reply import BatchReply, RowReply
from holdfast.client.calls import Calls
from holdfast.client.farewell import say_farewell
from holdfast.client.fate import leaves_unsure
from holdfast.client.message import Message, Sent
from holdfast.client.status import from_rpc, from_status
from holdfast.errors import ClientClosed, HoldfastError, MessageTooLarge, Overloaded, ServerUnavailable
from holdfast.v1 import holdfast_pb2 as pb


class Owner(Protocol):
    """Who sends over it."""

    def answered(self, message: Message) -> None:
        """Some rows of a message have their replies."""

    def refused(self, message: Message) -> None:
        """A message was refused as a whole; what of it may be sent again has no error yet."""

    def quiet(self, line: "Line") -> None:
        """Nothing is under way any more."""

    def over(self, line: "Line", too_large: Message | None) -> None:
        """The stream has ended, perhaps because a message was too large; its rows are told next."""

    def go(self) -> None:
        """There is room again."""


class Line:
    """A stream, and the messages on it with rows that have no reply, by tag.

    Args:
        stream: Open.
        calls: Of the client.
        owner: Sends over it.

    Attributes:
        opened_s: Monotonic time at which it was opened.
        writer: Writes to it now.
    """

    def __init__(self, stream: Any, calls: Calls, owner: Owner) -> None:
        self.stream = stream
        self.messages: dict[int, Message] = {}
        self.opened_s = time.monotonic()
        self.writer: asyncio.Task[None] | None = None
        self._calls = calls
        self._owner = owner
        self._tag = 0
        self._reader: asyncio.Task[None] | None = None
        self._is_answered = False

    async def write(self, message: Message) -> None:
        """Sends a message. What goes wrong is told to those who wait for its rows."""
        try:
            self._tag += 1
            request = message.to_request(self._tag)
            if self._calls.history is not None:
                message.number = self._calls.history.sent("StreamBatches", request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, their callers wait
            self._fail(message, error)
            return
        self.messages[self._tag] = message
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read())
        self.writer = asyncio.current_task()
        # how the stream has ended is for its reader to see
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, ClientClosed):
            await self.stream.write(request)
        self.writer = None

    async def end_well(self) -> None:
        """Ends the stream in good form; nothing is under way on it."""
        await say_farewell(self.stream)
        if self._reader is not None:
            self._reader.cancel()

    def forget(self) -> None:
        """Forgets the messages that nobody waits for any more."""
        self.messages = {tag: message for tag, message in self.messages.items() if not message.is_settled}

    def _fail(self, message: Message, error: Exception, *, goes_alone: bool = False) -> None:
        """Ends the rows of a message; a history that cannot be written comes last."""
        end_rows(message, error, goes_alone=goes_alone)
        if self._calls.history is not None and message.number:
            self._calls.history.failed(message.number, error)

    async def _read(self) -> None:
        """Settles messages until the stream ends; it waits for the next reply before one is due."""
        error: HoldfastError = ServerUnavailable("the server ended the stream")
        try:
            while (reply := await self.stream.read()) is not grpc.aio.EOF:
                self._is_answered = True
                self._take(reply)
                self._owner.go()
                if not self.messages:
                    self._owner.quiet(self)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure)
        except HoldfastError as failure:
            error = failure
        except asyncio.CancelledError:
            error = ServerUnavailable("the stream was cut")
        except Exception as failure:  # noqa: BLE001 -- whatever it is, their callers wait
            error = HoldfastError(f"a reply to a batch makes no sense: {failure!r}")
            self.stream.cancel()
        finally:
            self._reader = None
        self._end(error)

    def _end(self, error: HoldfastError) -> None:
        """Gives up what was under way, since the stream has ended."""
        if self._calls.lifetime.is_over:
            error = ClientClosed("the client was closed during the call")
        # some servers let no more streams in
        was_let_in = self._is_answered or "requests_read" in error.metadata
        too_large = None
        if isinstance(error, MessageTooLarge):  # perhaps only for a stream
            was_let_in = True
            too_large = max(self.messages.values(), key=lambda message: message.size_bytes, default=None)
        self._owner.over(self, too_large)
        if self.writer is not None:  # grpc.aio does not tell everyone who writes that the call is over
            self.writer.cancel()
        final = error
        if was_let_in and not leaves_unsure(error):  # that is about the stream, not about what was read
            final = ServerUnavailable(f"the stream has ended: {error.message}")
        for message in self.messages.values():
            if message is too_large or (isinstance(final, Overloaded) and not was_let_in):
                self._fail(message, error, goes_alone=True)
            else:
                self._fail(message, final)
        self.messages.clear()
        self._owner.go()

    def _take(self, response: pb.StreamBatchesResponse) -> None:
        """Settles what a reply is about; nothing, if nobody waits for it any more."""
        is_refusal = response.WhichOneof("outcome") == "error"
        tag = response.error.tag if is_refusal else response.result.tag
        message = self.messages.get(tag)
        if message is None:
            return
        if is_refusal:
            del self.messages[tag]
            self._refuse(message, from_status(response.error.status))
        else:
            result = response.result
            message.is_answered = True
            if result.rows:
                _settle(result, [message.rows[row] for row in result.rows])
            else:
                _settle(result, message.rows)
            if not result.rows or message.is_settled:
                del self.messages[tag]
            self._owner.answered(message)
        if self._calls.history is not None:
            self._calls.history.got(message.number, response)

    def _refuse(self, message: Message, error: HoldfastError) -> None:
        """Lets the owner send the rows again that are not at fault; nothing was applied.

        The one at fault goes alone in the end: its refusal then speaks of a chunk, as its caller knows it.
        """
        is_one = len(message.rows) == 1
        if error.retryable or (is_one and leaves_unsure(error)):
            self._fail(message, error)
        elif leaves_unsure(error):  # rows may have been applied, so their callers have to know
            self._fail(message, ServerUnavailable(f"the message had no reply: {error.message}"))
        elif is_one:
            self._fail(message, error, goes_alone=True)
        self._owner.refused(message)


def end_rows(message: Message, error: Exception, *, goes_alone: bool = False) -> None:
    """Gives each row of a message its error, or has it sent alone."""
    for row in message.rows:
        if row.reply.done():
            continue
        if goes_alone:
            row.reply.set_result(None)
        else:
            row.reply.set_exception(_own(error))


def _settle(result: pb.BatchResult, rows: list[Sent]) -> None:
    """Gives each row what a reply says of it."""
    batch = BatchReply(result, [row.session_id for row in rows])
    count = len(rows)
    digests = result.history_digests or [0] * count
    size_bytes = result.ByteSize() // count
    replayed, errors, separate = set(batch.replayed_rows), batch.errors, batch.separate_rows
    are_plain = not (replayed or errors or separate)
    batch.errors = {}  # an error that is raised holds frames, and the replies of others hold the batch
    number = -1
    for row, position, digest in zip(rows, result.positions, digests, strict=True):
        number += 1
        if row.reply.done():
            continue
        if are_plain or not (number in errors or number in separate):
            row.reply.set_result(
                RowReply(
                    batch,
                    number,
                    row.session_id,
                    position,
                    digest,
                    row.kind.token_count,
                    size_bytes,
                    number in replayed,
                )
            )
        elif number in errors:
            row.reply.set_exception(errors[number])
        else:
            reply = separate[number]
            row.is_applied = True
            row.reply.set_result(reply if reply.token_count else None)


def _own(error: Exception) -> Exception:
    """Returns an error for one caller: his says what becomes of his own chunk."""
    own = copy.copy(error)
    if isinstance(own, HoldfastError):
        own.metadata = dict(own.metadata)
    return own
