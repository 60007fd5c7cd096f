"""The chunks of one stream: sends what was taken, reads replies, goes on over another call after a failure.

It knows neither the source nor who waits for replies: both faces, asynchronous or not, drive it by `begin`,
`take`, `reply_or`, `finish` and `release`.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from typing import Any

import grpc
import grpc.aio

from holdfast.client.calls import Calls
from holdfast.client.farewell import say_farewell
from holdfast.client.fate import leaves_unsure, tell_fate, telling_pending
from holdfast.client.ledger import Asked, Entry, Ledger
from holdfast.client.recovery import Recovery
from holdfast.client.reply import StepReply
from holdfast.client.status import from_call, from_rpc, from_status
from holdfast.client.tokens import TokenSource, split
from holdfast.client.turn import Turn
from holdfast.errors import ClientClosed, HoldfastError, ServerUnavailable
from holdfast.v1 import holdfast_pb2 as pb

MAX_IN_FLIGHT_REPLY_BYTES = 32 * 1024
"""Half of what the server keeps of unacknowledged replies."""


class Pump:
    """Takes chunks and gives their replies, in order. Lives on the client's event loop.

    Args:
        calls: Of the client.
        ledger: Of the session.
        recovery: Of the session.
        turn: Of the session; held from `begin` to `release`.
        asked: What every chunk asks of its reply.
        size: Most tokens of a chunk.
        max_in_flight: Most chunks under way.
        timeout_s: Longest time without any progress; None is the client's.
    """

    def __init__(
        self,
        calls: Calls,
        ledger: Ledger,
        recovery: Recovery,
        turn: Turn,
        asked: Asked,
        size: int,
        max_in_flight: int,
        timeout_s: float | None,
    ) -> None:
        self._calls = calls
        self._ledger = ledger
        self._recovery = recovery
        self._turn = turn
        self._asked = asked
        self._size = size
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._has_turn = False
        self._stream: Any = None
        self._written: list[Entry] = []
        self._reading: asyncio.Task[Any] | None = None
        self._attempt = 0
        self._reply_bytes = 0
        self._deadline_s: float | None = None

    @property
    def room(self) -> int:
        """Chunks that may be taken now; one at a time until the size of a reply is known."""
        return max(0, self._window - len(self._ledger.entries))

    @property
    def is_waiting(self) -> bool:
        """Whether chunks were taken whose replies have not been given."""
        return bool(self._ledger.entries)

    async def begin(self) -> None:
        """Gets the session for the stream.

        Raises:
            SessionBusy, ChunkPending, ClientClosed: It is not to be had.
        """
        wait_s = self._calls.left_s(self._calls.deadline_s(self._timeout_s))
        with telling_pending(self._ledger):
            self._calls.lifetime.check_before_sending()
            await self._turn.take("a stream that has not ended", wait_s)
        self._has_turn = True
        self._ledger.check_nothing_pending()

    def take(self, part: TokenSource) -> None:
        """Takes a part of the source; from now on it belongs to the session.

        Raises:
            ValueError, TypeError: It is not tokens, and nothing of it was taken.
        """
        self._ledger.take(list(split(part, self._size)), self._asked)

    async def reply_or(self, fetch: "asyncio.Future[Any] | None") -> StepReply | None:
        """Waits for the next reply; returns None if a fetch from the source is done first.

        The time limit starts anew with every reply, and with a chunk taken when none was under way: a
        source may be silent for as long as it likes.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        while True:
            if self._deadline_s is None and self.is_waiting:
                self._deadline_s = self._calls.deadline_s(self._timeout_s)
            try:
                if not await self._wait(fetch):
                    return None
                return self._take_reply()
            except HoldfastError as error:
                await self._fail(error)

    async def exchange(self, parts: "deque[Any]") -> StepReply:
        """Takes parts of the source, those that it has taken out of `parts`, and gives the next reply.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        while parts:
            self.take(parts.popleft())
        reply = await self.reply_or(None)
        assert reply is not None, "bug: nothing else was waited for"
        return reply

    async def finish(self) -> None:
        """Ends the call in good form; every reply was given."""
        if self._stream is not None:
            await say_farewell(self._stream)

    def keep(self, leftover: "deque[Any]") -> None:
        """Takes what was fetched and not taken, as far as it is tokens; nobody else has it."""
        while leftover:
            with contextlib.suppress(ValueError, TypeError):
                self.take(leftover.popleft())

    def release(self) -> None:
        """Ends the stream at once, wherever it stands, and gives the session free."""
        self._hang_up()
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    # -- one call after the other ---------------------------------------------------------------

    @property
    def _window(self) -> int:
        if not self._reply_bytes:
            return 1
        return max(1, min(self._max_in_flight, MAX_IN_FLIGHT_REPLY_BYTES // self._reply_bytes))

    async def _wait(self, fetch: "asyncio.Future[Any] | None") -> bool:
        """Sends what may be sent, and waits; whether a reply is what has come."""
        await self._write_more()
        if self._reading is None and self._written:
            self._reading = asyncio.create_task(self._stream.read())
            self._reading.add_done_callback(_retrieve)
        closed = self._calls.lifetime.closed
        waited_for = {one for one in (self._reading, fetch, closed) if one is not None}
        left_s = self._left_s() if self._reading is not None else None
        await asyncio.wait(waited_for, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if self._reading is not None and self._reading.done():
            return True
        if closed.done():
            raise ClientClosed("the client was closed during the stream")
        if fetch is not None and fetch.done():
            return False
        self._calls.suspect(self._stream)
        raise ServerUnavailable("no reply within the time limit")

    async def _write_more(self) -> None:
        """Sends entries that were not sent on this call, as many as the window has room for."""
        unwritten = itertools.islice(self._ledger.entries, len(self._written), self._window)
        for entry in list(unwritten):
            self._calls.lifetime.check()
            if self._stream is None:
                self._stream = self._recovery.stub.StreamSteps(metadata=self._calls.metadata)
            self._written.append(entry)
            try:
                async with asyncio.timeout(self._left_s()):
                    await self._write(entry)
            except TimeoutError:
                raise ServerUnavailable("the server takes nothing") from None
            except asyncio.CancelledError as error:
                raise self._calls.lifetime.explain(error) from None

    async def _write(self, entry: Entry) -> None:
        request = pb.StreamStepsRequest(chunk=self._ledger.to_chunk(entry))
        if self._calls.history is not None:
            entry.number = self._calls.history.sent("StreamSteps", request)
        try:
            await self._stream.write(request)
        except asyncio.InvalidStateError:
            raise await from_call(self._stream) from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    def _take_reply(self) -> StepReply:
        assert self._reading is not None, "bug: nothing was read"
        reading, self._reading = self._reading, None
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except asyncio.CancelledError:
            raise ClientClosed("the client was closed during the stream") from None
        if message is grpc.aio.EOF:
            raise ServerUnavailable("the server ended the stream")
        if message.WhichOneof("outcome") == "error":
            raise from_status(message.error.status)
        return self._answer(message)

    def _answer(self, message: pb.StreamStepsResponse) -> StepReply:
        entry, result = self._written[0], message.result
        entry.is_unsure = True  # whatever is wrong with its reply, it may have been applied
        if self._calls.history is not None:
            self._calls.history.got(entry.number, message)
        if result.tag != entry.tag:
            raise HoldfastError(f"a reply has tag {result.tag}, expected {entry.tag}")
        self._ledger.answer(entry, StepReply(result))
        self._recovery.heard()
        self._reply_bytes = result.ByteSize()
        self._written.pop(0)
        self._attempt, self._deadline_s = 0, None
        return self._ledger.give()[0]

    async def _fail(self, error: HoldfastError) -> None:
        """Returns when it can go on over another call; else raises what became of the chunks."""
        written, self._written = self._written, []
        if self._calls.history is not None and written:
            self._calls.history.failed(written[0].number, error)
        if written and leaves_unsure(error):
            written[0].is_unsure = True
        for entry in written[1:]:
            entry.is_unsure = True
        self._hang_up()
        self._attempt += 1
        deadline_s = self._calls.deadline_s(None) if self._deadline_s is None else self._deadline_s
        try:
            await self._recovery.recover(error, self._attempt, deadline_s)
        except HoldfastError as final:
            tell_fate(final, self._ledger)
            raise

    def _hang_up(self) -> None:
        """Breaks the call off; nobody knows what becomes of the chunks sent on it."""
        if self._reading is not None:
            self._reading.cancel()
        if self._stream is not None:
            self._stream.cancel()
        for entry in self._written:
            entry.is_unsure = True
        self._stream, self._reading, self._written = None, None, []

    def _left_s(self) -> float:
        """Returns the seconds that this attempt may still wait."""
        assert self._deadline_s is not None, "bug: nothing is waited for"
        return self._calls.left_s(self._calls.attempt_deadline_s(self._attempt, self._deadline_s))


def _retrieve(reading: "asyncio.Task[Any]") -> None:
    """Has seen how a read ended that nobody waits for any more."""
    if not reading.cancelled():
        reading.exception()
