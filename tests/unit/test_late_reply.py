"""A process that stood still longer than it waits for the store: replies that have come are read."""

import asyncio
import socket
import threading
import time

import pytest
import uvloop

from holdfast.errors import StoreUnavailable
from service.store.address import Address
from service.store.connection import StoreConnection, fixed

TIMEOUT_S = 0.2


class Store(threading.Thread):
    """A store in a thread: greets, and answers the next request, if ever, once the asker stands still."""

    def __init__(self, folder, *, replies):
        super().__init__(daemon=True)
        self.stands_still = threading.Event()
        self.has_answered = threading.Event()
        self._replies = replies
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "s"))
        self._listener.listen()

    def run(self):
        with self._listener, self._listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"+PONG\r\n")
            read_until(connection, b"replication\r\n")
            connection.sendall(2 * b"$0\r\n\r\n")  # who it is, asked in two commands sent at once
            connection.recv(1000)
            if self._replies:
                self.stands_still.wait(10)
                connection.sendall(b"+PONG\r\n")
            self.has_answered.set()
            connection.recv(1000)


def read_until(connection, end):
    data = b""
    while not data.endswith(end):
        data += connection.recv(1000)


def ask(folder, *, replies, stands_still):
    """Asks a store, in a loop that may stand still, while it reads, until the time limit is over."""
    store = Store(folder, replies=replies)

    def stand_still(ours):
        ours.recv(1)
        store.stands_still.set()
        store.has_answered.wait(10)
        time.sleep(2 * TIMEOUT_S)

    async def run():
        connection = StoreConnection(fixed(Address(socket_path=folder / "s")), timeout_s=TIMEOUT_S)
        await connection.open()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            asyncio.get_running_loop().add_reader(ours, stand_still, ours)
            try:
                reply = connection.execute("PING")
                if stands_still:
                    theirs.send(b"x")
                return await asyncio.wait_for(reply, 10)
            except StoreUnavailable:
                assert connection.epoch == 1  # else what was committed before could be confirmed
                raise
            finally:
                asyncio.get_running_loop().remove_reader(ours)
                await connection.close()

    store.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        store.join()


def test_a_reply_that_came_while_this_process_stood_still_is_read(tmp_path):
    assert ask(tmp_path, replies=True, stands_still=True) == b"PONG"


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_store_that_says_nothing_is_given_up(tmp_path, stands_still):
    with pytest.raises(StoreUnavailable, match="no reply within"):
        ask(tmp_path, replies=False, stands_still=stands_still)
