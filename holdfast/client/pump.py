"""The chunks of one stream: sends what was taken, gives replies, sends again after a failure.

It knows neither the source nor who waits for replies: both faces, asynchronous or not, drive it by `begin`,
`take`, `reply_or`, `finish` and `release`.
"""

import asyncio
import contextlib
import itertools
import math
from collections import deque
from typing import Any

from holdfast.client.calls import Calls
from holdfast.client.fate import leaves_unsure, tell_fate, telling_pending
from holdfast.client.ledger import Asked, Ledger
from holdfast.client.message import Sent
from holdfast.client.recovery import Recovery
from holdfast.client.reply import StepReply, size_of
from holdfast.client.steps import Steps
from holdfast.client.tokens import TokenSource, pieces
from holdfast.client.turn import Turn
from holdfast.errors import ClientClosed, HoldfastError, PositionGap

MAX_OVERTAKEN = 3
"""So often a chunk is sent again that came to the server before the one it follows."""

MAX_IN_FLIGHT_REPLY_BYTES = 32 * 1024
"""Half of what the server keeps of unacknowledged replies."""


class Pump:
    """Takes chunks and gives their replies, in order. Lives on the client's event loop.

    Args:
        calls: Of the client.
        steps: Of the client.
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
        steps: Steps,
        ledger: Ledger,
        recovery: Recovery,
        turn: Turn,
        asked: Asked,
        size: int,
        max_in_flight: int,
        timeout_s: float | None,
    ) -> None:
        self._calls = calls
        self._steps = steps
        self._ledger = ledger
        self._recovery = recovery
        self._turn = turn
        self._asked = asked
        self._size = size
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._has_turn = False
        self._entries = ledger.entries
        self._window = 1  # until the size of a reply is known
        self._waiter: asyncio.Future[None] | None = None
        self._watched: tuple[asyncio.Future[Any] | None, ...] = ()
        self._sent: deque[Sent] = deque()
        self._alone: asyncio.Task[StepReply] | None = None
        self._attempt = 0
        self._deadline_s: float | None = None

    @property
    def room(self) -> int:
        """Chunks that may be taken now; one at a time until the size of a reply is known."""
        return max(0, self._window - len(self._entries))

    @property
    def is_waiting(self) -> bool:
        """Whether chunks were taken whose replies have not been given."""
        return bool(self._entries)

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
        self._calls.lifetime.closed.add_done_callback(self._wake)
        self._ledger.check_nothing_pending()

    def take(self, part: TokenSource) -> None:
        """Takes a part of the source; from now on it belongs to the session.

        Raises:
            ValueError, TypeError: It is not tokens, and nothing of it was taken.
        """
        self._ledger.take(pieces(part, self._size), self._asked)

    async def reply_or(self, fetch: "asyncio.Future[Any] | None") -> StepReply | None:
        """Waits for the next reply; returns None if a fetch from the source is done first.

        The time limit starts anew with every reply, and with a chunk taken when none was under way: a
        source may be silent for as long as it likes.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        while True:
            if self._deadline_s is None and self._entries:
                self._deadline_s = self._calls.deadline_s(self._timeout_s)
            try:
                if not await self._wait(fetch):
                    return None
                if (reply := self._take_reply()) is not None:
                    return reply
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
            self._calls.lifetime.closed.remove_done_callback(self._wake)
            self._turn.release()

    # -- one attempt after the other ------------------------------------------------------------

    async def _wait(self, fetch: "asyncio.Future[Any] | None") -> bool:
        """Sends what may be sent, and waits; whether a reply is what has come."""
        if len(self._sent) < len(self._entries):
            self._send_more()
        if self._sent and self._sent[0].until_s == math.inf:  # it has just become the first
            self._sent[0].limit(self._attempt_until_s())
        first, closed = self._first, self._calls.lifetime.closed
        if first is not None and fetch is None:
            with contextlib.suppress(Exception):  # raised when the reply is taken
                await first
            return True
        for one in (first, fetch):
            if one is not None and one not in self._watched:
                one.add_done_callback(self._wake)
        self._watched = first, fetch
        while True:
            if first is not None and first.done():
                return True
            if closed.done():
                raise ClientClosed("the client was closed during the stream")
            if fetch is not None and fetch.done():
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self, _: object) -> None:
        """Something that is waited for may have come. `asyncio.wait` would look through all streams."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def _first(self) -> "asyncio.Future[Any] | None":
        """The reply that comes next."""
        if self._alone is not None:
            return self._alone
        return self._sent[0].reply if self._sent else None

    def _send_more(self) -> None:
        """Sends entries that were not sent in this attempt, as many as the window has room for."""
        entries = self._entries
        while self._alone is None and len(self._sent) < min(self._window, len(entries)):
            self._calls.lifetime.check()
            sent = self._steps.send(self._ledger, entries[len(self._sent)], self._recovery.stub)
            if sent is not None:
                self._sent.append(sent)
            elif self._sent:
                break  # it waits until it is the first
            else:
                self._send_alone()

    def _send_alone(self) -> None:
        """Sends the first entry by a call of its own."""
        call = self._steps.step_alone(
            self._ledger, self._entries[0], self._attempt_until_s(), self._recovery.stub
        )
        self._alone = asyncio.create_task(call)
        self._alone.add_done_callback(_retrieve)

    def _take_reply(self) -> StepReply | None:
        """Returns the reply that has come; None if its chunk has to be sent alone, which it does."""
        assert self._first is not None, "bug: nothing was sent"
        reply = self._first.result()
        if reply is None:
            first = self._entries[0]
            first.is_unsure = first.is_unsure or self._sent[0].is_applied
            self._hang_up(1)
            self._send_alone()
            return None
        self._ledger.answer(self._entries[0], reply)
        self._recovery.heard()
        self._window = max(1, min(self._max_in_flight, MAX_IN_FLIGHT_REPLY_BYTES // (size_of(reply) or 1)))
        if self._alone is None:
            self._sent.popleft()
        self._alone = None
        self._attempt, self._deadline_s = 0, None
        return self._ledger.give()[0]

    async def _fail(self, error: HoldfastError) -> None:
        """Returns when it can go on with another attempt; else raises what became of the chunks."""
        is_overtaken = bool(self._sent) and _was_ahead(self._sent[0]) and isinstance(error, PositionGap)
        if self._first is not None and leaves_unsure(error):
            self._entries[0].is_unsure = True
        self._hang_up(1)
        self._attempt += 1
        if is_overtaken and self._attempt <= MAX_OVERTAKEN:
            return
        deadline_s = self._calls.deadline_s(None) if self._deadline_s is None else self._deadline_s
        try:
            await self._recovery.recover(error, self._attempt, deadline_s)
        except HoldfastError as final:
            tell_fate(final, self._ledger)
            raise

    def _hang_up(self, first: int = 0) -> None:
        """Gives up what is under way; nobody knows what becomes of it, from the `first` chunk on."""
        sent_count = max(len(self._sent), self._alone is not None)
        for entry in itertools.islice(self._entries, first, sent_count):
            entry.is_unsure = True
        for sent in self._sent:
            sent.reply.cancel()
        self._sent.clear()
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None

    def _attempt_until_s(self) -> float:
        assert self._deadline_s is not None, "bug: nothing is waited for"
        return self._calls.attempt_deadline_s(self._attempt, self._deadline_s)


def _was_ahead(sent: Sent) -> bool:
    """Whether one before it had no reply when it was sent, and may have come to the server later."""
    return sent.acknowledged < sent.position


def _retrieve(call: "asyncio.Task[Any]") -> None:
    """Has seen how a call ended that nobody waits for any more."""
    if not call.cancelled():
        call.exception()
