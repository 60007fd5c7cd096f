"""A plain conversation with a server that speaks RESP: one command, one reply, and what comes unasked.

For what `connection` is not made for: sentinels, which are asked a question, and channels, on which servers
speak first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import hiredis

from service.store.address import Address
from service.store.error_table import error_of
from service.store.replies import Reply

_READ_BYTES = 65_536


class Talk:
    """A connection.

    Args:
        reader: Of the connection.
        writer: Of the connection.
        name: Of the server, for errors.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self._reader = reader
        self._writer = writer
        self._replies = hiredis.Reader()
        self._name = name

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were written and have not left."""
        size_bytes: int = self._writer.transport.get_write_buffer_size()
        return size_bytes

    def write(self, request: bytes) -> None:
        """Sends a packed command, whose reply is still to be read."""
        self._writer.write(request)

    async def ask(self, *command: Any) -> Reply:
        """Sends a command and waits for its reply; an error is raised as what it means."""
        self._writer.write(hiredis.pack_command(command))
        reply = await self.read()
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(str(reply), self._name)
        return reply

    async def read(self) -> Reply:
        """Returns what comes next; an error as a value.

        Raises:
            EOFError: The server has closed the connection.
        """
        while (reply := self._replies.gets()) is False:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise EOFError("it closed the connection")
            self._replies.feed(data)
        return reply


@contextlib.asynccontextmanager
async def talk_to(address: Address, timeout_s: float, name: str) -> AsyncIterator[Talk]:
    """Connects and greets, within the limit; what is asked afterwards is the caller's to limit.

    Args:
        address: Of the server.
        timeout_s: For the connection, and again for the greeting.
        name: Of the server, for errors.

    Raises:
        OSError, TimeoutError, EOFError: It cannot be connected to.
        ServiceError: It refuses the greeting.
    """
    async with asyncio.timeout(timeout_s):
        if address.socket_path is not None:
            reader, writer = await asyncio.open_unix_connection(str(address.socket_path))
        else:
            hostname = address.host if address.tls else None
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=address.tls, server_hostname=hostname
            )
    try:
        talk = Talk(reader, writer, name)
        async with asyncio.timeout(timeout_s):
            for command in address.greeting():
                await talk.ask(*command)
        yield talk
    finally:
        writer.transport.abort()
