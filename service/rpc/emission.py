"""A call with one request and many replies, which leave as they are made.

It is a stream among the calls under way: it ends when the server drains, when it is old, or when its client
does not read; its status then says how many replies it had.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from holdfast.errors import Draining, InvalidRequest, ServiceError
from service.engine.admission import Share
from service.rpc.call import CALL_BYTES, Call
from service.rpc.codec import parse
from service.rpc.open_calls import OpenCalls
from service.rpc.status import abort
from service.telemetry.rpc_metrics import RpcMetrics

Produce = Callable[[Any], AsyncIterator[Any]]
"""Takes the request and makes the replies, messages. It is closed when the call ends."""


class Emission:
    """One such call.

    Args:
        call: The call.
        calls: Knows it while it lasts, and may end it.
        metrics: Counts what is read and written.

    Attributes:
        is_writing: A reply is being written.
        written_count: Replies written so far.
        heard_s: Monotonic time of the last request or reply.
    """

    def __init__(self, call: Call, calls: OpenCalls, metrics: RpcMetrics) -> None:
        self.is_writing = False
        self.written_count = 0
        self.heard_s = time.monotonic()
        self._call = call
        self._calls = calls
        self._metrics = metrics
        self._ending: ServiceError | None = None
        self._serving: asyncio.Task[Any] | None = None

    async def serve(self, message_type: Any, produce: Produce) -> None:
        """Reads the request, and writes replies until there are no more.

        Args:
            message_type: Of the request.
            produce: Makes the replies.

        Raises:
            Draining, Overloaded: It may not begin.
            InvalidRequest: It has no request.
            ServiceError: As `produce` raises it.
        """
        with self._calls.stream(self, self._call.caller.tenant) as share:
            self._serving = asyncio.current_task()
            try:
                await self._emit(produce(await self._request(message_type, share)))
            except asyncio.CancelledError:
                if self._ending is None or self._serving is None or self._serving.uncancel():
                    raise  # not, or not only, `cut` has cancelled this
            if self._ending is not None:
                share.hold(0, CALL_BYTES)  # how long its end takes is up to its client
                self._ending.metadata["replies"] = str(self.written_count)
                await abort(self._call.context, self._ending, self._call.request_id)

    def say_goodbye(self, why: str) -> None:
        """Ends it; what it has not emitted yet comes when the call is made again."""
        self.cut(Draining(f"{why}; make the call again, from the last reply on", retry_after_s=0.0))

    def cut(self, error: ServiceError) -> None:
        """Ends it with this error, whatever is under way."""
        if self._ending is None and self._serving is not None:
            self._ending = error
            self._serving.cancel()

    async def _request(self, message_type: Any, share: Share) -> Any:
        raw = await self._call.context.read()
        if raw is grpc.aio.EOF:
            raise InvalidRequest("the call ended before it had a message")
        self._metrics.received()
        self.heard_s = time.monotonic()
        share.take(1, CALL_BYTES + len(raw))
        return parse(message_type, raw)

    async def _emit(self, replies: AsyncIterator[Any]) -> None:
        try:
            async for reply in replies:
                self.is_writing = True
                await self._call.context.write(reply.SerializeToString())
                self.is_writing = False
                self.written_count += 1
                self.heard_s = time.monotonic()
                self._metrics.sent()
        finally:
            if (close := getattr(replies, "aclose", None)) is not None:
                await close()
