"""Channels of a made-up server, over real sockets: what it does not take is dropped, not waited for."""

import asyncio
import contextlib

import hiredis
import pytest

from holdfast.errors import StoreUnavailable
from service.store.address import Address
from service.store.channels import MAX_UNSENT_BYTES, Channels
from tests.support.waiting import wait_for

MIB = 1 << 20


class Somewhere:
    """Says where the made-up server is."""

    def __init__(self, address):
        self.address = address
        self.is_gone = False

    def where(self):
        return self.address

    def is_elsewhere(self, address):
        return self.is_gone


class Server:
    """Greets, takes a subscription, and then says what a test has it say."""

    async def __aenter__(self):
        self.heard, self.writers = [], []
        self._reads = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.store = Somewhere(Address("127.0.0.1", port))
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        replies = hiredis.Reader()
        for answer in (b"+PONG\r\n", b"%0\r\n", b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"):
            while (command := replies.gets()) is False:
                replies.feed(await reader.read(65_536))
            self.heard.append(command)
            writer.write(answer)
        await self._reads.wait()


@contextlib.asynccontextmanager
async def channels_of(server, on_message=lambda *_: None):
    lost = []
    channels = Channels(
        server.store, (b"a",), timeout_s=2.0, on_message=on_message, on_lost=lambda: lost.append(1)
    )
    channels.lost = lost
    turn = asyncio.create_task(channels.turn())
    try:
        await asyncio.to_thread(wait_for, lambda: not channels.trouble)
        yield channels
    finally:
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)


async def test_what_is_said_on_a_channel_is_heard(caplog):
    heard = asyncio.Queue()
    async with Server() as server, channels_of(server, lambda *said: heard.put_nowait(said)):
        server.writers[0].write(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")
        assert await asyncio.wait_for(heard.get(), 10) == (b"a", b"hi")
        assert server.heard == [[b"PING"], [b"HELLO", b"3"], [b"SUBSCRIBE", b"a"]]


async def test_a_server_that_takes_nothing_is_not_waited_for():
    async with Server() as server, channels_of(server) as channels:
        sent = 0
        while channels.publish(b"b", b"x" * MIB):
            sent += 1
            assert sent < 64, "what is not taken is kept"
        assert sent * MIB >= MAX_UNSENT_BYTES / 2
        assert not channels.publish(b"b", b"x")


async def test_a_lost_connection_fails_what_waits_for_it_and_is_said():
    async with Server() as server, channels_of(server) as channels:
        announcing = asyncio.create_task(channels.announce(b"b", b"x"))
        await asyncio.sleep(0)
        server.writers[0].transport.abort()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(announcing, 10)
        assert channels.lost == [1]
        assert channels.trouble
        assert not channels.publish(b"b", b"x")
        with pytest.raises(StoreUnavailable):
            await channels.announce(b"b", b"x")


async def test_a_server_that_is_no_primary_any_more_is_left(monkeypatch):
    monkeypatch.setattr("service.store.channels.PING_S", 0.05)
    async with Server() as server, channels_of(server) as channels:
        server.store.is_gone = True
        await asyncio.to_thread(wait_for, lambda: channels.lost)
        assert "not a primary" in channels.trouble
