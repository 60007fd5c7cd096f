"""A commit of many rows goes out at once over a socket in the file system."""

import asyncio
import socket
import threading

import pytest
import uvloop

from service.store.address import Address
from service.store.connection import StoreConnection, fixed

COMMIT_BYTES = 330_000
"""Of 256 rows with a kilobyte of state each."""


class Store(threading.Thread):
    """Greets one client in a thread, and reads nothing after that."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.connection = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()

    def run(self):
        with self._listener:
            self.connection, _ = self._listener.accept()
        self.connection.recv(1000)
        self.connection.sendall(b"+PONG\r\n")
        data = b""
        while not data.endswith(b"replication\r\n"):
            data += self.connection.recv(1000)
        self.connection.sendall(2 * b"$0\r\n\r\n")  # who it is, asked in two commands sent at once

    def arrived_bytes(self):
        """Returns how much has come, without letting the client send more."""
        count = 0
        self.connection.setblocking(False)
        try:
            while data := self.connection.recv(1 << 16):
                count += len(data)
        except BlockingIOError:
            return count
        raise AssertionError("the client has closed the connection")


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_large_commit_goes_out_at_once(tmp_path, new_loop):
    store = Store(str(tmp_path / "s"))
    store.start()

    async def run():
        connection = StoreConnection(fixed(Address(socket_path=tmp_path / "s")), timeout_s=10)
        await connection.open()
        reply = connection.send((bytes(COMMIT_BYTES),))
        arrived_bytes = store.arrived_bytes()
        await connection.close()
        await asyncio.wait([reply])
        return arrived_bytes, reply.exception()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        arrived_bytes, error = runner.run(run())
    store.connection.close()
    assert arrived_bytes == COMMIT_BYTES
    assert error is not None  # nobody answered
