"""One connection to a Redis server, shared by everything: requests are pipelined, replies come in order.

Owns: connecting, reconnecting, matching replies to requests, the time limit. Knows no records.

A request is never sent twice. When a reply is late or the socket breaks, every request under way
fails with StoreUnavailable and the connection is thrown away, so that a late reply can never be
taken for the reply to another request.
"""

import asyncio
import contextlib
import logging
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hiredis

from service.errors import StoreUnavailable

_log = logging.getLogger(__name__)

RECONNECT_DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Pauses between attempts; the last one repeats. Readiness must come back fast after a restart."""

RETRY_AFTER_S = 0.2
"""What callers are told while the store is away: about one attempt to reconnect."""

_IDENTITY = re.compile(rb"^(?:run_id|role|master_replid):\S+", re.MULTILINE)


@dataclass(frozen=True)
class Address:
    """Where a Redis server listens and how to greet it.

    Attributes:
        host: Name or IP address; unused with `socket_path`.
        port: TCP port.
        socket_path: Unix socket, instead of host and port.
        database: Number for SELECT.
        username: ACL user; None is the default user.
        password: Its password; None is no AUTH.
        tls: Context of a TLS connection; None is plain.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    socket_path: Path | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}/{self.database}"

    def greeting(self) -> list[tuple[Any, ...]]:
        """Returns the commands that a new connection starts with."""
        commands: list[tuple[Any, ...]] = []
        if self.password is not None:
            user = () if self.username is None else (self.username,)
            commands.append(("AUTH", *user, self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands


class StoreConnection:
    """Executes commands; reconnects by itself.

    Args:
        address: The server.
        timeout_s: Longest wait for a reply, and for a connection.
        on_change: Called with True when the server answers and with False when it no longer does.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._protocol: _RespProtocol | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._closed = False
        self._last_error = "not connected yet"
        self._epoch = 0
        self._identity: bytes | None = None

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent."""
        return self._protocol is not None

    @property
    def epoch(self) -> int:
        """Counts the connections made; behind each may be another server."""
        return self._epoch

    @property
    def identity(self) -> bytes | None:
        """Process, role and replication history of the server when it was connected to; None if unknown."""
        return self._identity

    def identify(self) -> list[asyncio.Future[Any]]:
        """Asks for what `identity_in` reads."""
        return [self.execute("INFO", "server"), self.execute("INFO", "replication")]

    def sibling(self, more_s: float) -> "StoreConnection":
        """Returns another connection to the same address, not open yet, for replies that take longer."""
        return StoreConnection(self._address, timeout_s=self._timeout_s + more_s)

    def drop(self, why: str) -> None:
        """Gives the connection up for a new one; requests under way fail."""
        if self._protocol is not None:
            self._protocol.abort(why)

    async def open(self) -> None:
        """Connects once.

        Raises:
            StoreUnavailable: No server answers there, or it refuses the greeting.
        """
        self._protocol = await self._connect()
        self._on_change(True)

    async def close(self) -> None:
        """Closes for good; requests under way fail."""
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting
        if self._protocol is not None:
            self._protocol.abort("the connection was closed")

    def execute(self, *command: Any) -> asyncio.Future[Any]:
        """Sends one command; see `send`."""
        return self.send((hiredis.pack_command(command),))

    def send(self, request: Sequence[bytes | memoryview]) -> asyncio.Future[Any]:
        """Sends one packed request, given in pieces that nobody changes any more.

        Returns:
            Future of the reply, as hiredis reads it: bytes, int, list, None or hiredis.ReplyError.

        Raises:
            StoreUnavailable: There is no connection (from the call), or it broke or took too long
                (from the future); what was sent may or may not have been executed.
        """
        if self._protocol is None:
            raise self._unavailable(self._last_error)
        return self._protocol.send(request)

    def _unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(f"store {self._address}: {why}", retry_after_s=RETRY_AFTER_S)

    async def _connect(self) -> "_RespProtocol":
        def create_protocol() -> _RespProtocol:
            return _RespProtocol(self._timeout_s, self._unavailable, self._lost)

        try:
            async with asyncio.timeout(self._timeout_s):
                protocol = await self._dial(create_protocol)
                await self._greet(protocol)
                self._identity = await _identity(protocol)
        except (OSError, TimeoutError) as error:
            raise self._unavailable(f"cannot connect: {str(error) or 'no answer in time'}") from None
        self._epoch += 1
        return protocol

    async def _dial(self, create_protocol: Callable[[], "_RespProtocol"]) -> "_RespProtocol":
        loop, address = asyncio.get_running_loop(), self._address
        if address.socket_path is not None:
            return (await loop.create_unix_connection(create_protocol, str(address.socket_path)))[1]
        hostname = address.host if address.tls else None
        connection = loop.create_connection(
            create_protocol, address.host, address.port, ssl=address.tls, server_hostname=hostname
        )
        return (await connection)[1]

    async def _greet(self, protocol: "_RespProtocol") -> None:
        for command in self._address.greeting():
            reply = await protocol.send((hiredis.pack_command(command),))
            if isinstance(reply, hiredis.ReplyError):
                protocol.abort("the greeting was refused")
                raise self._unavailable(f"{command[0]} was refused: {reply}")

    def _lost(self, protocol: "_RespProtocol", why: str) -> None:
        if protocol is not self._protocol:
            return
        self._protocol = None
        self._last_error = why
        self._on_change(False)
        if not self._closed:
            _log.warning("store %s lost: %s", self._address, why)
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        for attempt in range(1_000_000_000):
            try:
                self._protocol = await self._connect()
            except StoreUnavailable as error:
                self._last_error = error.message
                last = len(RECONNECT_DELAYS_S) - 1
                await asyncio.sleep(RECONNECT_DELAYS_S[min(attempt, last)])
            else:
                _log.warning("store %s is back", self._address)
                self._on_change(True)
                return


def identity_in(information: Sequence[Any]) -> bytes | None:
    """Reads process, role and replication history of a server from what it says; None if it does not."""
    if not all(isinstance(text, bytes) for text in information):
        return None
    found = _IDENTITY.findall(b"".join(information))
    return b" ".join(found) if len(found) == 3 else None


async def _identity(protocol: "_RespProtocol") -> bytes | None:
    commands: list[tuple[Any, ...]] = [("INFO", "server"), ("INFO", "replication")]
    replies = [protocol.send((hiredis.pack_command(command),)) for command in commands]
    return identity_in(await asyncio.gather(*replies))


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
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._why = "the server closed the connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        self._loop = asyncio.get_running_loop()

    def send(self, request: Sequence[bytes | memoryview]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._waiting.append((future, self._loop.time() + self._timeout_s))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check_time)
        self._transport.writelines(request)
        return future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                future, _ = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(f"the server does not speak RESP: {error}")

    def abort(self, why: str) -> None:
        self._why = why
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        why = str(exc) if exc else self._why
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
        if remaining_s <= 0:
            self.abort(f"no reply within {self._timeout_s:g} s")
        else:
            self._timer = self._loop.call_later(remaining_s, self._check_time)
