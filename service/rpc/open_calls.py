"""The calls under way: how many, which streams, and when a stream has to end.

A stream ends in one of two ways. At a *goodbye* it reads no more, every chunk that it has read is answered
after its commit, and then its status says so: so a client loses nothing and knows it. That is what a drain
does to all streams, and age to each in its turn. It is *cut* when its client does not read: what is not
written is dropped, for the client has everything to send it again.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Iterator
from typing import Protocol

import grpc.aio

from holdfast.errors import DeadlinePassed, Draining, InvalidRequest, Overloaded, ServiceError
from service.engine.admission import Admission, Share
from service.rpc.arrivals import Arrivals
from service.rpc.call import CALL_BYTES, Call

AGE_JITTER = 0.1
"""Streams that began together do not end together; as gRPC does with connections."""

QUIET_S = 0.1
LONGEST_RESTLESS_S = 1.0
"""A drain ends when no call has ended or been refused for so long, or after so long: what gRPC has not
handed over when it stops gets a bare CANCELLED, so it stops while clients wait to try again."""

RETRY_AFTER_S = 0.05
"""Of calls refused while draining: another server takes them, or this one's successor."""

GIVEN_UP_S = 0.1
"""gRPC says that nothing more will come an instant before it says that the call was given up."""

SILENT_S = 1.0
RELIEF_PART = 16
"""Where memory is short, streams that have sent nothing for so long are ended, one in so many at a time."""

SHORTAGE_RETRY_S = 1.0

PLACES = 64
"""Unary calls whose message is received at a time, where nothing else is said."""


class OpenStream(Protocol):
    """A stream under way."""

    @property
    def is_writing(self) -> bool:
        """Whether a reply is being written."""

    @property
    def written_count(self) -> int:
        """Replies written so far."""

    @property
    def heard_s(self) -> float:
        """Monotonic time at which the last request had come."""

    def say_goodbye(self, why: str) -> None:
        """Reads no more and ends once what was read is answered."""

    def cut(self, error: ServiceError) -> None:
        """Ends at once with this error."""


class _Watched:
    """What is remembered of a stream between two looks."""

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.written_count = -1
        self.moved_s = 0.0
        self.is_told = False


class OpenCalls:
    """Knows every call under way.

    Args:
        admission: Bounds them.
        max_call_s: Longest wait of a chunk, and of a call whose caller sets no deadline.
        max_stall_s: A stream on which a reply could not be written for so long is cut.
        max_age_s: About so long a stream lives; 0 is for ever.
        places: Unary calls whose message is received at a time.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        max_call_s: float,
        max_stall_s: float,
        max_age_s: float,
        places: int = PLACES,
    ) -> None:
        self.admission = admission
        self.max_call_s = max_call_s
        self.max_stall_s = max_stall_s
        self._arrivals = Arrivals(places)
        self._max_age_s = max_age_s
        self._streams: dict[OpenStream, _Watched] = {}
        self._unary: dict[Call, None] = {}
        self._is_draining = False
        self._shortage = ""
        self._busy_s = -QUIET_S  # when a call last ended or was refused
        self._none_left = asyncio.Event()

    @contextlib.contextmanager
    def stream(self, stream: OpenStream, tenant: str) -> Iterator[Share]:
        """Counts a stream while it lasts; gives what it holds.

        Raises:
            Draining, Overloaded: It may not open.
        """
        self._check_open()
        share = self.admission.open_stream(tenant)
        self._streams[stream] = _Watched(self._draw_end_s())
        try:
            yield share
        finally:
            share.close()
            self._streams.pop(stream, None)
            self._left()

    async def receive(self, call: Call) -> bytes:
        """Counts a unary call until all of it is over, and returns its message; nothing is parsed.

        Awaited in the task that serves the call.

        Raises:
            Draining: It may not begin.
            InvalidRequest: It has no message.
            Overloaded, DeadlinePassed: It may not begin; its message took too long, or is too large now.
        """
        self._check_open()
        share = call.share = self.admission.share(call.caller.tenant)
        share.take(1, CALL_BYTES)
        task = asyncio.current_task()
        assert task is not None, "bug: a call without a task"
        call.task, call.is_arriving = task, True
        self._unary[call] = None
        task.add_done_callback(functools.partial(self._over, call))
        try:
            message = await self._arrivals.read(call)
            if message is grpc.aio.EOF:
                await asyncio.sleep(GIVEN_UP_S)
                raise InvalidRequest("the call ended before it had a message")
        except asyncio.CancelledError:
            refusal = call.cancelled_by()
            if refusal is None:
                raise
            self.admission.refused(refusal.reason)
            raise refusal from None
        call.is_arriving = False
        share.take(0, len(message))
        raw: bytes = message
        return raw

    async def drain(self) -> None:
        """Refuses calls from now on; returns when those under way have ended and hardly any come."""
        self._is_draining = True
        for stream in list(self._streams):
            stream.say_goodbye("this server is leaving")
        self._see_whether_none_is_left()
        await self._none_left.wait()
        until_s = time.monotonic() + LONGEST_RESTLESS_S
        while True:
            left_s = min(until_s, self._busy_s + QUIET_S) - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    def relieve(self, shortage: str, now_s: float) -> None:
        """Refuses what comes while something is short, and ends a part of what has been silent for longest.

        An idle stream and one that withholds the end of a message look alike; only the latter holds much.

        Args:
            shortage: What is short, for people; "" is nothing.
            now_s: Monotonic time.
        """
        self._shortage = shortage
        if not shortage:
            return
        silent = [
            (stream, watched)
            for stream, watched in self._streams.items()
            if now_s - stream.heard_s >= SILENT_S and not watched.is_told
        ]
        silent.sort(key=lambda pair: pair[0].heard_s)
        for stream, watched in silent[: 1 + len(silent) // RELIEF_PART]:
            watched.is_told = True
            stream.say_goodbye(shortage)
        arriving = [call for call in self._unary if call.is_arriving and now_s - call.began_s >= SILENT_S]
        for call in arriving[: 1 + len(arriving) // RELIEF_PART]:
            call.refuse(Overloaded(shortage, retry_after_s=SHORTAGE_RETRY_S))

    def sweep(self, now_s: float) -> None:
        """Ends streams and calls whose time has come; called every now and then."""
        self._arrivals.sweep(now_s)
        for call in self._unary:
            if call.is_arriving and now_s - call.began_s >= self.max_call_s:
                call.refuse(DeadlinePassed(f"the call's message did not come within {self.max_call_s:g} s"))
            elif now_s >= call.ends_s:
                call.refuse(
                    DeadlinePassed(
                        f"the call set no deadline and was not done after {self.max_call_s:g} s; it may "
                        "still be applied"
                    )
                )
        for stream, watched in list(self._streams.items()):
            if now_s >= watched.ends_s:
                watched.ends_s = float("inf")
                stream.say_goodbye("the connection is old, another one may reach another server")
            if not stream.is_writing or stream.written_count != watched.written_count:
                watched.written_count, watched.moved_s = stream.written_count, now_s
            elif now_s - watched.moved_s >= self.max_stall_s:
                del self._streams[stream]  # how long its end takes is up to its client: nobody waits for it
                stream.cut(self._stalled())
                self._see_whether_none_is_left()

    def _draw_end_s(self) -> float:
        if not self._max_age_s:
            return float("inf")
        jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 -- no secret
        return time.monotonic() + self._max_age_s * jitter

    def _check_open(self) -> None:
        if self._is_draining:
            self._busy_s = time.monotonic()
            raise Draining(
                "this server is leaving; another one takes the request", retry_after_s=RETRY_AFTER_S
            )
        if self._shortage:
            self.admission.refused(Overloaded.reason)
            raise Overloaded(self._shortage, retry_after_s=SHORTAGE_RETRY_S)

    def _over(self, call: Call, _: object) -> None:
        """The reply to a unary call or its status is written, or it was given up."""
        self._arrivals.leave(call)
        call.share.close()
        del self._unary[call], call.task  # the task holds the call, where it failed
        self._left()

    def _left(self) -> None:
        self._busy_s = time.monotonic()
        self._see_whether_none_is_left()

    def _see_whether_none_is_left(self) -> None:
        if self._is_draining and not self._streams and not self._unary:
            self._none_left.set()

    def _stalled(self) -> Overloaded:
        return Overloaded(
            f"no reply could be written for {self.max_stall_s:g} s, since nothing was read; what was sent "
            "may be applied: send it again with its positions",
            retry_after_s=0.0,
        )
