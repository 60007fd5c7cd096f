"""A store that sends what no store sends: requests fail, and the connection is made anew."""

import asyncio
import contextlib

import pytest

from holdfast.errors import StoreUnavailable
from service.store.opening import create_store

GARBAGE = {
    "not RESP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a reply nobody asked for": b"$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
    "a key that cannot be one": b"%1\r\n*0\r\n+a\r\n",
    "another kind of reply": b":7\r\n",
    "too few records": b"*0\r\n",
    "an error among records": b"*1\r\n-ERR no\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_fails_the_request_and_the_next_connection_is_right(garbage):
    connection_count = 0
    answering = []

    async def answer(reader, writer):
        nonlocal connection_count
        connection_count += 1
        answering.append(asyncio.current_task())
        is_first = connection_count == 1
        while command := await read_command(reader):
            if command[0] == b"PING":
                writer.write(b"+PONG\r\n")
            elif command[0] == b"INFO":
                writer.write(b"$0\r\n\r\n")
            else:
                writer.write(garbage if is_first else b"*1\r\n$6\r\nrecord\r\n")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    changes = []
    back = asyncio.Event()

    def on_change(is_up):
        changes.append(is_up)
        if len(changes) == 3:
            back.set()

    port = server.sockets[0].getsockname()[1]
    store = create_store(f"redis://127.0.0.1:{port}", timeout_s=5, on_change=on_change)
    await store.open()
    with pytest.raises(StoreUnavailable):
        await store.load([b"key"])
    async with asyncio.timeout(10):
        await back.wait()
    assert changes == [True, False, True]
    assert await store.load([b"key"]) == [b"record"]
    await store.close()
    server.close()
    await asyncio.gather(*answering)


async def read_command(reader):
    """Returns the next command, b"" after the last one."""
    try:
        count = int((await reader.readuntil(b"\r\n"))[1:])
        command = []
        for _ in range(count):
            size = int((await reader.readuntil(b"\r\n"))[1:])
            command.append((await reader.readexactly(size + 2))[:-2])
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    return command
