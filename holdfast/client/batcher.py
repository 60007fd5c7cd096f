"""Sends the chunks of many sessions together: those that come while a message is under way go in the next.

Most of what a token costs is a gRPC message of its own. Callers who wait at the same time share one: a
chunk that comes alone leaves at once, and those that come while a message is under way leave together. So
batches grow with the load, and nobody waits for a timer.

Each row has its own time limit and is given up alone. A message that is refused as a whole is sent again in
halves: no row suffers for what another one asks. What comes back: see `holdfast.client.line`.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from holdfast.client.calls import Calls
from holdfast.client.ledger import Kind
from holdfast.client.line import Line, end_rows
from holdfast.client.message import Message, Sent
from holdfast.errors import DeadlinePassed, HoldfastError

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
        self._line: Line | None = None
        self._left: set[Line] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = math.inf
        self._most_rows: dict[Kind, int] = {}
        self._most_bytes = MAX_BYTES

    @property
    def is_in_use(self) -> bool:
        """Whether it has a stream, or rows that wait for one."""
        return self._line is not None or bool(self._left or self._queues)

    def submit(self, row: Sent) -> Sent:
        """Takes a row. Those of a session go one after the other, in messages of their own."""
        row.batcher = self
        row.reply = self._loop.create_future()
        if row.until_s < self._alarm_s:
            self.wake_at(row.until_s)
        if row.session_id not in self._behind:
            self._behind[row.session_id] = None
            self._enter(row)
        elif (followers := self._behind[row.session_id]) is None:
            self._behind[row.session_id] = deque((row,))
        else:
            followers.append(row)
        return row

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
            await line.end_well()

    # -- sending ------------------------------------------------------------------------------

    def _enter(self, row: Sent) -> None:
        queue = self._queues.get(row.kind)
        if queue is None:
            self._queues[row.kind] = deque((row,))
            self.go()
        else:  # it goes when those before it do
            queue.append(row)

    def go(self) -> None:
        """Has what waits sent, after what else happens in this turn of the loop."""
        if self._sender is None and self._next_kind() is not None:
            self._sender = self._loop.create_task(self._send())

    def _next_kind(self) -> Kind | None:
        """Returns of which rows a message may leave now; sees to it that others may soon."""
        for kind in self._queues:
            if self._has_room(kind):
                return kind
        return None

    def _has_room(self, kind: Kind) -> bool:
        if self._line is None or len(self._line.messages) < MAX_UNDER_WAY:
            return True
        since_s, pace = time.monotonic() - LATE_S, kind.pace
        recent = [
            message.sent_s
            for message in self._line.messages.values()
            if not message.is_answered and message.sent_s > since_s and message.kind.pace == pace
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

    def _next_message(self, kind: Kind) -> Message:
        """Takes rows of one kind out of their queue; the kinds take turns."""
        queue = self._queues.pop(kind)
        most = min(self._most_rows.get(kind, MAX_ROWS), max(1, MAX_TOKENS // kind.token_count))
        most = min(most, max(1, self._most_bytes // (kind.token_count * max(1, kind.width) * 4)))
        if len(queue) >= SPLIT_ROWS and (self._line is None or not self._line.messages):
            most = min(most, len(queue) // 2)
        rows: list[Sent] = []
        freed = []
        while queue and len(rows) < most:
            row = queue.popleft()
            followers = self._behind.pop(row.session_id, None)
            if followers:
                freed.append(followers.popleft())
                self._behind[row.session_id] = followers or None
            if not row.reply.done():
                rows.append(row)
        if queue:
            self._queues[kind] = queue
        for follower in freed:
            self._enter(follower)
        return Message(kind, rows, time.monotonic())

    async def _write(self, message: Message) -> None:
        try:
            line = self._open_line()
        except Exception as error:  # noqa: BLE001 -- whatever it is, their callers wait
            end_rows(message, error)
            return
        await line.write(message)

    def _open_line(self) -> Line:
        line = self._line
        if line is not None and time.monotonic() - line.opened_s > self._renew_s:
            self._renew_s = min(2 * self._renew_s, RENEW_S)
            self._leave(line)
        if self._line is None or self._line.stream.is_over:
            self._line = Line(self._stub.StreamBatches(metadata=self._calls.metadata), self._calls, self)
        return self._line

    def _leave(self, line: Line) -> None:
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

    # -- what a stream tells ------------------------------------------------------------------

    def answered(self, message: Message) -> None:
        """Some rows of a message have their replies; see `holdfast.client.line.Owner`."""
        if message.kind in self._most_rows:
            self._allow(message.kind, self._most_rows[message.kind] + 1)

    def refused(self, message: Message) -> None:
        """Has the rows of a message that was refused as a whole sent in halves, unless they were told."""
        self._allow(message.kind, max(1, len(message.rows) // 2))
        rows = [row for row in message.rows if not row.reply.done()]
        for row in rows:
            self._behind.setdefault(row.session_id, None)
        if rows:
            self._queues[message.kind] = deque([*rows, *self._queues.get(message.kind, ())])

    def quiet(self, line: Line) -> None:
        """Nothing is under way on a stream any more: it ends in a while, or now if it was left."""
        if line in self._left:
            self._left.discard(line)
            self._end_well(line)
        else:
            self.wake_at(time.monotonic() + IDLE_S)

    def over(self, line: Line, too_large: Message | None) -> None:
        """A stream has ended; later rows go over another one, and in smaller messages if that is why."""
        if self._line is line:
            self._line = None
        self._left.discard(line)
        if self._sender is line.writer:
            self._sender = None
        if too_large is not None:
            self._most_bytes = max(1024, min(self._most_bytes, too_large.size_bytes) // 2)

    def _allow(self, kind: Kind, row_count: int) -> None:
        """Bounds the rows of a message: halved by a refusal, one more with every reply."""
        self._most_rows.pop(kind, None)
        if row_count < MAX_ROWS:
            self._most_rows[kind] = row_count
        if len(self._most_rows) > MAX_BOUNDS:
            del self._most_rows[next(iter(self._most_rows))]

    # -- time limits --------------------------------------------------------------------------

    def wake_at(self, until_s: float) -> None:
        """Looks after what is late at that time, or before."""
        if until_s >= self._alarm_s:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_s = until_s
        self._alarm = self._loop.call_later(max(0.0, until_s - time.monotonic()), self._look)

    def _waiting(self) -> Iterator[Sent]:
        """Yields the rows that somebody waits for: queued, behind these, or under way."""
        lines = self._left if self._line is None else {self._line, *self._left}
        places = [
            *self._queues.values(),
            *(followers for followers in self._behind.values() if followers),
            *(message.rows for line in lines for message in line.messages.values()),
        ]
        return (row for rows in places for row in rows if not row.reply.done())

    def _look(self) -> None:
        """Gives up the rows whose time is up; ends the stream if nothing was under way for long."""
        self._alarm, self._alarm_s = None, math.inf
        now_s = time.monotonic()
        limits_s = []
        for row in list(self._waiting()):
            if row.until_s > now_s:
                limits_s.append(row.until_s)
                continue
            self._suspect(row, now_s)
            row.reply.set_exception(
                DeadlinePassed(
                    "no reply within the time limit",
                    code="DEADLINE_EXCEEDED",
                    metadata={"grpc_code": "DEADLINE_EXCEEDED"},
                )
            )
        if self._line is not None:
            self._line.forget()
        for line in tuple(self._left):
            line.forget()
            if not line.messages:
                self._left.discard(line)
                line.stream.cancel()
        if limits_s:
            self.wake_at(min(limits_s))
            self.go()
        elif self._line is not None:
            self._end_idle(self._line, now_s)

    def _suspect(self, row: Sent, now_s: float) -> None:
        if self._line is None:
            return
        silent_s = now_s - max(row.since_s, self._line.stream.since_s)
        if silent_s >= LATE_S:
            self._calls.suspect(self._line.stream, silent_s)
            self._leave(self._line)  # the next one may go to another replica

    def _end_idle(self, line: Line, now_s: float) -> None:
        left_s = line.stream.since_s + IDLE_S - now_s
        if left_s > 0:
            self.wake_at(now_s + left_s)
        elif not line.messages:
            self._leave(line)

    def _end_well(self, line: Line) -> None:
        task = self._loop.create_task(line.end_well())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
