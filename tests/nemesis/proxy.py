"""A proxy between two processes that can be told to misbehave, each direction by itself.

It runs in a thread with a loop of its own, so that tests may be with or without asyncio; a link's settings
are plain attributes that may be changed at any time, and hold for what is forwarded from then on.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 64 * 1024
POLL_S = 0.005


@dataclass
class Link:
    """One direction.

    Attributes:
        delay_s: Before each piece is forwarded.
        jitter_s: Added to it, uniform.
        is_black_hole: Nothing is forwarded, and nothing closed; what came meanwhile goes when it ends.
        slice_bytes: Most bytes forwarded at once; 0 is any.
        bytes_per_s: Bandwidth; 0 is any.
        reset_after: Bytes until the connection is reset, once; None is never.
        forwarded: Bytes so far.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    is_black_hole: bool = False
    slice_bytes: int = 0
    bytes_per_s: float = 0.0
    reset_after: int | None = None
    forwarded: int = 0

    def heal(self):
        """Forwards everything again."""
        count = self.forwarded
        self.__init__(forwarded=count)


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    pumps: list[asyncio.Task] = field(default_factory=list)
    is_frozen: bool = False


class FaultProxy:
    """Forwards connections. A context manager.

    Args:
        upstream: HOST:PORT, or path of a unix socket.
        listen: As `upstream`; by default a free port of 127.0.0.1.
        seed: Of the jitter.

    Attributes:
        address: Where it listens: HOST:PORT or the path.
        to_server: What clients send.
        to_client: What the server answers.
        is_refusing: New connections are closed at once.
        connection_count: Connections accepted so far.
    """

    def __init__(self, upstream, listen="127.0.0.1:0", *, seed=0):
        self._upstream = str(upstream)
        self._listen = str(listen)
        self._rng = random.Random(seed)
        self._connections: set[_Connection] = set()
        self.to_server, self.to_client = Link(), Link()
        self.is_refusing = False
        self.connection_count = 0
        self.address = ""

    def __enter__(self):
        if "/" in self._listen:
            Path(self._listen).unlink(missing_ok=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        try:
            self._run(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        self._run(self._stop())
        self._end()

    def cut(self):
        """Resets every connection."""
        self._run(self._cut())

    def freeze(self):
        """Swallows whatever comes over the connections there are, and closes none; new ones are fine."""
        for connection in list(self._connections):
            connection.is_frozen = True

    def heal(self):
        """Takes every fault away; connections that were cut stay so."""
        self.is_refusing = False
        self.to_server.heal()
        self.to_client.heal()

    # -- in the thread ------------------------------------------------------------------------

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _end(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self):
        if "/" in self._listen:
            self._server = await asyncio.start_unix_server(self._accept, self._listen)
            self.address = self._listen
        else:
            host, _, port = self._listen.rpartition(":")
            self._server = await asyncio.start_server(self._accept, host, int(port))
            self.address = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def _stop(self):
        self._server.close()
        await self._cut()
        while self._connections:  # noqa: ASYNC110 -- each leaves by itself
            await asyncio.sleep(POLL_S)

    async def _cut(self):
        pumps = [pump for connection in self._connections for pump in connection.pumps]
        for connection in list(self._connections):
            _reset(connection.client)
            _reset(connection.server)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _accept(self, reader, writer):
        self.connection_count += 1
        if self.is_refusing:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await self._dial()
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, server_writer)
        self._connections.add(connection)
        connection.pumps = [
            asyncio.create_task(self._pump(reader, server_writer, self.to_server, connection)),
            asyncio.create_task(self._pump(server_reader, writer, self.to_client, connection)),
        ]
        await asyncio.gather(*connection.pumps, return_exceptions=True)
        for side in (connection.client, connection.server):
            side.close()
            with contextlib.suppress(ConnectionError):
                await side.wait_closed()
        self._connections.discard(connection)

    async def _dial(self):
        if "/" in self._upstream:
            return await asyncio.open_unix_connection(self._upstream)
        host, _, port = self._upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pump(self, reader, writer, link, connection):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                await self._forward(data, writer, link, connection)
            writer.write_eof()
            return
        _reset(connection.client)
        _reset(connection.server)

    async def _forward(self, data, writer, link, connection):
        if link.delay_s or link.jitter_s:
            await asyncio.sleep(link.delay_s + self._rng.uniform(0, link.jitter_s))
        start = 0
        while start < len(data):
            if connection.is_frozen:
                return
            while link.is_black_hole:  # noqa: ASYNC110 -- set from other threads
                await asyncio.sleep(POLL_S)
            size = min(link.slice_bytes or len(data), len(data) - start)
            is_last = link.reset_after is not None and size >= link.reset_after
            if is_last:
                size = link.reset_after
            writer.write(data[start : start + size])
            await writer.drain()
            start += size
            link.forwarded += size
            if is_last:
                link.reset_after = None
                await asyncio.sleep(POLL_S)  # what was written before the reset still arrives
                raise ConnectionResetError
            if link.reset_after is not None:
                link.reset_after -= size
            if link.bytes_per_s:
                await asyncio.sleep(size / link.bytes_per_s)
            elif link.slice_bytes:
                await asyncio.sleep(0)


def _reset(writer):
    """Ends a connection with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0 and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
