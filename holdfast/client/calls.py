"""The calls of a client: over which connection, until when, and again after which errors.

Sessions, streams and batches use it; the classes that users see hold it privately. What it calls over is
given to it, so all of this runs over something else than sockets as well.
"""

import asyncio
import os
import time
from typing import Any, Protocol

import grpc.aio

from holdfast.client.ack_levels import to_number
from holdfast.client.history import Recorder
from holdfast.client.lifetime import Lifetime
from holdfast.client.options import seconds
from holdfast.client.retry import RetryPolicy, limit_s, pause_s
from holdfast.client.status import from_rpc
from holdfast.client.trace_context import with_trace_context
from holdfast.errors import DeadlinePassed, HoldfastError


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call that say who calls; none without a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


class Connections(Protocol):
    """What is called over: `holdfast.client.transport.Transport`."""

    @property
    def replica_count(self) -> int:
        """Replicas behind each connection, as far as that is known."""

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made it."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` has begun."""

    def check(self) -> None:
        """Makes sure that it may be used here."""

    def next_stub(self) -> Any:
        """Returns the connection whose turn it is."""

    def suspect(self, used: Any, waited_s: float | None = None) -> None:
        """Connects anew beside a connection over which nothing came back in time."""

    async def close(self) -> None:
        """Closes the connections."""


class Calls:
    """Makes the calls of one client.

    Args:
        connections: What it calls over.
        token: Bearer token sent with every call; None sends none.
        retry: Pauses between attempts.
        timeout_s: Longest wait of a call, retries included.
        ack_level: The client's; None is the server's.
        history: Records every request, reply and error, or the file for that, which `close` closes; None
            records nothing.

    Attributes:
        lifetime: Of the client.
        metadata: Sent with every call.
        ack_level: See above.
        history: Records every request, reply and error.

    Raises:
        TypeError, ValueError: The time limit is none, or there is no such level.
        OSError: The history cannot be written.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        token: str | None,
        retry: RetryPolicy,
        timeout_s: float,
        ack_level: str | None,
        history: str | os.PathLike[str] | Recorder | None,
    ) -> None:
        to_number(ack_level)
        self._connections = connections
        self._retry = retry
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._first_attempt_s = limit_s(retry, 0)
        self.lifetime = Lifetime(connections.check)
        self.metadata = bearer(token)
        self.ack_level = ack_level
        self._owns_history = history is not None and not isinstance(history, Recorder)
        self.history = history if history is None or isinstance(history, Recorder) else Recorder(history)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made the client."""
        return self._connections.is_inherited

    @property
    def replica_count(self) -> int:
        """Replicas behind each connection, as far as that is known."""
        return self._connections.replica_count

    async def close(self) -> None:
        """Does what `AsyncClient.close` says."""
        if not self.is_inherited:
            self.lifetime.end()
        try:
            await self._connections.close()
        finally:
            if self._owns_history and self.history is not None and self._connections.is_closed:
                self.history.close()
                self._owns_history = False

    def next_stub(self) -> Any:
        """Returns the connection whose turn it is, which has the rpcs as a stub has them.

        Raises:
            ClientForked, ClientClosed, WrongEventLoop: The client may not be used here, or not any more.
        """
        self.lifetime.check()
        return self._connections.next_stub()

    def suspect(self, used: Any, waited_s: float | None = None) -> None:
        """Has the next attempts go over a new connection, since one over this one had no reply in time.

        Args:
            used: The stub, or the stream over it.
            waited_s: For how long the attempt waited; a stream knows by itself.
        """
        self._connections.suspect(used, waited_s)

    async def call(
        self, rpc: str, request: Any, *, deadline_s: float | None = None, stub: Any = None
    ) -> Any:
        """Calls an rpc until it succeeds, fails for good, or the time is up; first over `stub`, if given.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        until_s = self.deadline_s(None) if deadline_s is None else deadline_s
        attempt = 0
        while True:
            try:
                return await self.call_once(rpc, request, self.attempt_deadline_s(attempt, until_s), stub)
            except HoldfastError as error:
                if not error.retryable:
                    raise
                attempt += 1
                stub = None
                await self.pause(error, attempt, until_s)

    async def call_once(self, rpc: str, request: Any, deadline_s: float, stub: Any = None) -> Any:
        """Calls an rpc once, over the connection of `stub` or the one whose turn it is.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        if self.history is None:
            return await self._send(rpc, request, deadline_s, stub)
        number = self.history.sent(rpc, request)
        try:
            reply = await self._send(rpc, request, deadline_s, stub)
        except (HoldfastError, asyncio.CancelledError) as error:
            self.history.failed(number, error)
            raise
        self.history.got(number, reply)
        return reply

    async def _send(self, rpc: str, request: Any, deadline_s: float, stub: Any) -> Any:
        self.lifetime.check()
        connection = (stub or self.next_stub()).current()
        began_s = time.monotonic()
        left_s = self.left_s(deadline_s)
        try:
            metadata = with_trace_context(self.metadata)
            return await connection.unary(rpc, request, timeout=left_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error)
        except asyncio.CancelledError as error:
            raise self.lifetime.explain(error) from None
        if isinstance(failure, DeadlinePassed) and failure.is_silence:
            self.suspect(connection, time.monotonic() - began_s)
        raise failure

    async def pause(self, error: HoldfastError, attempt: int, deadline_s: float) -> None:
        """Waits before the next attempt.

        Raises:
            HoldfastError: The given one, if the pause would outlast the time limit.
        """
        wait_s = pause_s(self._retry, attempt, error.retry_after_s)
        if time.monotonic() + wait_s >= deadline_s:
            raise error
        await self.lifetime.sleep(wait_s)

    def deadline_s(self, timeout_s: float | None) -> float:
        """Returns the monotonic time at which a call that starts now has to be done."""
        most_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        return time.monotonic() + most_s

    def attempt_deadline_s(self, attempt: int, deadline_s: float) -> float:
        """Returns the monotonic time at which attempt 0, 1, 2, … is given up for the next one."""
        longest_s = limit_s(self._retry, attempt) if attempt else self._first_attempt_s
        return min(deadline_s, time.monotonic() + longest_s)

    def left_s(self, deadline_s: float) -> float:
        """Returns the seconds left, at least a moment."""
        return max(0.001, deadline_s - time.monotonic())
