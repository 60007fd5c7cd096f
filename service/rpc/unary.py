"""A unary call from its metadata to the last byte of its reply.

gRPC would read its message before anybody is told of the call. So it is served as a call that streams,
which reads for itself: it is counted, refused and timed before its message has come.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from holdfast.errors import InvalidRequest, Overloaded, ServiceError
from service.engine.admission import Share
from service.rpc.arrivals import Arrivals
from service.rpc.tasks import end_within

CALL_BYTES = 24 << 10
"""What a call takes by itself, about: in gRPC and its tasks here."""

SLOWEST_BYTES_S = 64 << 10
"""A reply that is read more slowly than this, over a stall, is given up."""

GIVEN_UP_S = 0.1
"""gRPC says that nothing more will come an instant before it says that the call was given up."""


class UnaryCall:
    """A unary call while it lasts; made in its task, by `OpenCalls`.

    Args:
        context: The call, of grpc.aio.
        tenant: Whose it is.
        share: What it holds.
        arrivals: Gives it its turn to read.
        on_refused: Told the reason, where it is ended while its message is awaited.

    Attributes:
        context, tenant, share: The same.
        began_s: Monotonic time.
        is_arriving: Its message is awaited.
    """

    __slots__ = (
        "_arrivals",
        "_on_over",
        "_on_refused",
        "_refusal",
        "_task",
        "began_s",
        "context",
        "is_arriving",
        "share",
        "tenant",
    )

    def __init__(
        self, context: Any, tenant: str, share: Share, arrivals: Arrivals, on_refused: Callable[[str], None]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "bug: a call without a task"
        self._task = task
        self._arrivals = arrivals
        self._on_refused = on_refused
        self._refusal: ServiceError | None = None
        self.context = context
        self.tenant = tenant
        self.share = share
        self.began_s = asyncio.get_running_loop().time()
        self.is_arriving = True

    def when_over(self, tell: "Callable[[UnaryCall], None]") -> None:
        """Has somebody told when its reply or its status is written, or it was given up."""
        self._on_over = tell
        self._task.add_done_callback(self._over)

    async def message(self) -> bytes:
        """Returns its message, counted; nothing is parsed.

        Raises:
            InvalidRequest: It has none.
            Overloaded, DeadlinePassed: It took too long, or is too large for now.
        """
        try:
            message = await self._arrivals.read(self)
            if message is grpc.aio.EOF:
                await asyncio.sleep(GIVEN_UP_S)
                raise InvalidRequest("the call ended before it had a message")
        except asyncio.CancelledError:
            if self._refusal is None or self._task.uncancel():
                raise  # not, or not only, `refuse` has cancelled this
            raise self._refusal from None
        self.is_arriving = False
        self.share.take(0, len(message))
        raw: bytes = message
        return raw

    def replies(self, size_bytes: int, max_stall_s: float) -> None:
        """Counts a reply that is about to be written; what it was made from is gone.

        Args:
            size_bytes: Of the reply.
            max_stall_s: It may take so long, and what its size adds.
        """
        self.share.give_back()
        self.share.change(1, CALL_BYTES + 2 * size_bytes)  # it is here, and copied into gRPC
        end_within(max_stall_s + size_bytes / SLOWEST_BYTES_S)

    def too_slow(self, waited_s: float) -> None:
        """Ends it, for others wait for its place."""
        self.refuse(
            Overloaded(
                f"the call's message did not come within {waited_s:.1f} s, and other calls waited",
                retry_after_s=1.0,
            )
        )

    def refuse(self, error: ServiceError) -> None:
        """Ends it with an error while its message is awaited."""
        if self._refusal is None:
            self._refusal = error
            self._on_refused(error.reason)
            self.is_arriving = False
            self._task.cancel()

    def _over(self, _: object) -> None:
        self._arrivals.leave(self)
        self.share.close()
        self._on_over(self)
        del self._task  # that one holds this, where it failed
