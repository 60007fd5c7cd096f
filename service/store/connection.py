"""One connection to a Redis server, shared by everything: requests are pipelined, replies come in order.

Owns: connecting, reconnecting, matching replies to requests, the time limit. Knows no records.

A request is never sent twice. When a reply is late or the socket breaks, every request under way
fails with StoreUnavailable and the connection is thrown away, so that a late reply can never be
taken for the reply to another request.

Where the server is, is asked anew before every attempt to connect: behind Sentinel it moves.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, cast

import hiredis

from holdfast.errors import ServiceError, StoreUnavailable
from service.common.background import Trouble
from service.store.address import Address
from service.store.error_table import RETRY_AFTER_S, error_of
from service.store.replies import Reply
from service.store.send_buffer import widen

_log = logging.getLogger(__name__)

RECONNECT_DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Pauses between attempts; the last one repeats. Readiness must come back fast after a restart."""

LAST_LOOK_S = 0.01
"""Left to read what has come meanwhile, after a reply is late. The loop runs its timers before it reads:
after a second of standing still, its own or the machine's, it would give up replies that have long come."""

Locate = Callable[[], Awaitable[Address]]
"""Says where the server is now; raises StoreUnavailable if nobody knows."""

_IDENTITY_COMMANDS: tuple[tuple[Any, ...], ...] = (("INFO", "server"), ("INFO", "replication"))
_IDENTITY = re.compile(rb"^(?:run_id|role|master_replid):\S+", re.MULTILINE)


def fixed(address: Address) -> Locate:
    """Returns a `Locate` for a server that does not move."""

    async def locate() -> Address:
        return address

    return locate


class StoreConnection:
    """Executes commands; reconnects by itself.

    Args:
        locate: Says where the server is.
        timeout_s: Longest wait for a reply, and for a connection.
        on_change: Called with True when the server answers and with False when it no longer does.
        must_be_primary: Keep no connection to a replica.

    Attributes:
        address: Of the server last connected to, or last tried; None before that.
        epoch: Counts the connections that were lost. While it stays the same, so does the server behind.
        identity: Process, role and replication history of the server when it was connected to; None if it
            does not say, or while there is no connection.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None] = lambda _: None,
        must_be_primary: bool = False,
    ) -> None:
        self._locate = locate
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._must_be_primary = must_be_primary
        self._protocol: _RespProtocol | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._closed = False
        self._last_error = "not connected yet"
        self.address: Address | None = None
        self.epoch = 0
        self.identity: bytes | None = None

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent."""
        return self._protocol is not None

    @property
    def process(self) -> bytes:
        """Names the process of the server, another one after each start of it; or its address."""
        return self.identity.split()[0] if self.identity is not None else str(self.address).encode()

    async def open(self) -> None:
        """Connects once.

        Raises:
            StoreUnavailable: No server answers there, or it refuses the greeting.
        """
        self._take(await self._connect())

    def identify(self) -> list[asyncio.Future[Reply]]:
        """Asks for what `identity_in` reads."""
        return [self.execute(*command) for command in _IDENTITY_COMMANDS]

    def sibling(self, more_s: float) -> "StoreConnection":
        """Returns another connection to the same server, not open yet, for replies that take longer.

        Raises:
            StoreUnavailable: There is no connection.
        """
        if self.address is None or not self.is_connected:
            raise self._unavailable(self._last_error)
        return StoreConnection(fixed(self.address), timeout_s=self._timeout_s + more_s)

    def begin(self) -> None:
        """Connects in the background, however often it takes."""
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def wait_connected(self) -> None:
        """Waits until requests can be sent.

        Raises:
            StoreUnavailable: Not in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise self._unavailable(self._last_error) from None

    async def close(self) -> None:
        """Closes for good; requests under way fail."""
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting
        if self._protocol is not None:
            self._protocol.abort("the connection was closed")

    def leave(self, why: str) -> None:
        """Drops the server and looks for it anew; requests under way fail."""
        if self._protocol is not None:
            protocol = self._protocol
            self._lost(protocol, why)
            protocol.abort(why)
        elif self._reconnecting is not None and not self._closed:
            self._reconnecting.cancel()  # it may be waiting for one that does not answer
            self.begin()

    def execute(self, *command: Any) -> asyncio.Future[Reply]:
        """Sends one command; see `send`."""
        return self.send((hiredis.pack_command(command),))

    def send(self, request: Sequence[bytes | memoryview]) -> asyncio.Future[Reply]:
        """Sends one packed request, given in pieces that nobody changes any more.

        Returns:
            Future of the reply.

        Raises:
            StoreUnavailable: There is no connection (from the call), or it broke or took too long
                (from the future); what was sent may or may not have been executed.
        """
        if self._protocol is None:
            raise self._unavailable(self._last_error)
        return self._protocol.send(request)

    def send_many(
        self, requests: Sequence[bytes | memoryview]
    ) -> asyncio.Future[list[Reply | StoreUnavailable]]:
        """Sends packed requests in one write.

        Returns:
            Future of their replies, in order; StoreUnavailable for those that did not come: these requests
            may or may not have been executed.

        Raises:
            StoreUnavailable: There is no connection; nothing was sent.
        """
        if self._protocol is None:
            raise self._unavailable(self._last_error)
        return self._protocol.send_many(requests)

    def _unavailable(self, why: str) -> StoreUnavailable:
        where = "" if self.address is None else f" {self.address}"
        return StoreUnavailable(f"store{where}: {why}", retry_after_s=RETRY_AFTER_S)

    async def _connect(self) -> "_RespProtocol":
        def create_protocol() -> _RespProtocol:
            return _RespProtocol(self._timeout_s, self._unavailable, self._lost)

        try:
            async with asyncio.timeout(self._timeout_s):
                self.address = await self._locate()
                protocol = await self._dial(self.address, create_protocol)
                try:
                    await self._greet(self.address, protocol)
                    self.identity = await _identity(protocol)
                except BaseException:
                    protocol.abort("the greeting was not answered")
                    raise
        except (OSError, TimeoutError) as error:
            raise self._unavailable(f"cannot connect: {str(error) or 'no answer in time'}") from None
        return protocol

    async def _dial(
        self, address: Address, create_protocol: Callable[[], "_RespProtocol"]
    ) -> "_RespProtocol":
        loop = asyncio.get_running_loop()
        if address.socket_path is not None:
            path = str(address.socket_path)
            transport, protocol = await loop.create_unix_connection(create_protocol, path)
            widen(transport)
            return protocol
        hostname = address.host if address.tls else None
        connection = loop.create_connection(
            create_protocol, address.host, address.port, ssl=address.tls, server_hostname=hostname
        )
        return (await connection)[1]

    async def _greet(self, address: Address, protocol: "_RespProtocol") -> None:
        for command in address.greeting():
            if protocol.lost is not None:
                raise protocol.lost
            reply = await protocol.send((hiredis.pack_command(command),))
            if isinstance(reply, hiredis.ReplyError):
                said = error_of(str(reply), f"store {address} refused {command[0]}")
                raise StoreUnavailable(said.message, retry_after_s=RETRY_AFTER_S)
        if self._must_be_primary:
            role = await protocol.send((hiredis.pack_command(("ROLE",)),))
            if isinstance(role, hiredis.ReplyError):
                raise error_of(str(role), f"store {address}")
            if role[0] != b"master":
                raise self._unavailable(f"it is not a primary but {role[0].decode(errors='replace')!r}")

    def _take(self, protocol: "_RespProtocol") -> None:
        self._protocol = protocol
        self._up.set()
        self._on_change(True)

    def _lost(self, protocol: "_RespProtocol", why: str) -> None:
        if protocol is not self._protocol:
            return
        self._protocol = None
        self._up.clear()
        self._last_error = why
        self.identity = None
        self.epoch += 1
        if not self._closed:
            _log.warning("store %s lost: %s", self.address, why)
            self.begin()
        self._on_change(False)

    async def _reconnect(self) -> None:
        trouble = Trouble("store_connection")
        for attempt in range(1_000_000_000):
            with trouble:  # a server may greet with anything
                try:
                    protocol = await self._connect()
                except ServiceError as error:
                    if attempt == 0:
                        _log.warning("%s", error.message)
                    self._last_error = error.message
                else:
                    _log.info("store %s answers", self.address)
                    self._take(protocol)
                    return
            last = len(RECONNECT_DELAYS_S) - 1
            await asyncio.sleep(RECONNECT_DELAYS_S[min(attempt, last)])


def identity_in(information: Sequence[Reply]) -> bytes | None:
    """Reads process, role and replication history of a server from what it says; None if it does not."""
    if not all(isinstance(text, bytes) for text in information):
        return None
    found = _IDENTITY.findall(b"".join(information))
    return b" ".join(found) if len(found) == 3 else None


async def _identity(protocol: "_RespProtocol") -> bytes | None:
    replies = [protocol.send((hiredis.pack_command(command),)) for command in _IDENTITY_COMMANDS]
    return identity_in(await asyncio.gather(*replies))


class _Waiting(Protocol):
    """What takes a reply: a future, or the share that a request has in one."""

    def done(self) -> bool: ...
    def set_result(self, result: Reply, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class _Replies:
    """Takes the replies to requests that were sent together; stands in the queue once for each."""

    def __init__(self, count: int, future: "asyncio.Future[list[Reply | StoreUnavailable]]") -> None:
        self._replies: list[Reply | StoreUnavailable] = []
        self._count = count
        self._future = future

    def done(self) -> bool:
        return False  # a reply is always taken: the next one must not be taken for it

    def set_result(self, result: Reply | StoreUnavailable, /) -> None:
        self._replies.append(result)
        if len(self._replies) == self._count and not self._future.done():
            self._future.set_result(self._replies)

    set_exception = set_result


class _RespProtocol(asyncio.Protocol):
    """One socket: writes packed commands, resolves futures in the order of the replies."""

    def __init__(
        self,
        timeout_s: float,
        unavailable: Callable[[str], StoreUnavailable],
        on_lost: Callable[["_RespProtocol", str], None],
    ) -> None:
        self._timeout_s = timeout_s
        self._unavailable = unavailable
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[_Waiting, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._why = "the server closed the connection"
        self.lost: StoreUnavailable | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        self._loop = asyncio.get_running_loop()

    def send(self, request: Sequence[bytes | memoryview]) -> asyncio.Future[Reply]:
        future = self._loop.create_future()
        self._waiting.append((future, self._loop.time() + self._timeout_s))
        if self._timer is None:
            self._start_timer()
        self._transport.writelines(request)
        return future

    def send_many(
        self, requests: Sequence[bytes | memoryview]
    ) -> asyncio.Future[list[Reply | StoreUnavailable]]:
        future = self._loop.create_future()
        entry = (_Replies(len(requests), future), self._loop.time() + self._timeout_s)
        self._waiting.extend(entry for _ in requests)
        if self._timer is None:
            self._start_timer()
        self._transport.writelines(requests)
        return future

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s, self._check_time)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError) and not self._waiting:
                    self.abort(str(reply))  # how a server that has no connection left says goodbye
                    return
                future, _ = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except Exception as error:  # noqa: BLE001 -- no reply in it, whatever the reader trips over
            self.abort(f"the server does not speak RESP: {error}")

    def abort(self, why: str) -> None:
        self._why = why
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        why = str(exc) if exc else self._why
        self.lost = self._unavailable(why)
        self._on_lost(self, why)
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._unavailable(why))

    def _check_time(self) -> None:
        """Runs once per time limit while requests wait, instead of one timer per request."""
        self._timer = None
        if not self._waiting:
            return
        oldest_deadline = self._waiting[0][1]
        remaining_s = oldest_deadline - self._loop.time()
        if remaining_s > 0:
            self._is_late = False
            self._timer = self._loop.call_later(remaining_s, self._check_time)
        elif not self._is_late:
            self._is_late = True  # unless it is this process that stood still: then the reply may lie here
            self._timer = self._loop.call_later(LAST_LOOK_S, self._check_time)
        else:
            self.abort(f"no reply within {self._timeout_s:g} s")
