"""Whatever clients do, a server goes on, and says no error of it, nor anything outside of its log."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket

import grpc
import grpc.aio
import pytest

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc import codec
from service.rpc.grpc_log import lower_lines_about_clients
from tests.rpc.conftest import MODEL
from tests.support.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    connect,
    frame,
    headers,
    message,
    reset,
    window_update,
)
from tests.support.opening import open_at
from tests.support.server import ServerProcess

SERVICE = b"/holdfast.v1.StreamingInferenceService/"
STEP, STREAM = SERVICE + b"Step", SERVICE + b"StreamSteps"
HEALTH, WATCH = b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"
REFLECTION = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
CHUNK = pb.Chunk(session_id="wire", model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=b"a"))
ONE, ONE_OF_MANY = (
    request(chunk=CHUNK).SerializeToString() for request in (pb.StepRequest, pb.StreamStepsRequest)
)


def timeout(value):
    return (b"grpc-timeout", value)


def encoding(value):
    return (b"grpc-encoding", value)


def chunks(stream, count):
    return message(stream, ONE_OF_MANY, is_last=False) * count


CALLS = {
    "reset before its message": lambda n: headers(n, STEP) + reset(n),
    "stream reset before a message": lambda n: headers(n, STREAM) + reset(n),
    "reset after its message": lambda n: headers(n, STEP) + message(n, ONE) + reset(n),
    "stream reset while it is answered": lambda n: headers(n, STREAM) + chunks(n, 20) + reset(n),
    "unknown method": lambda n: headers(n, SERVICE + b"Nothing", is_last=True),
    "unknown method, reset": lambda n: headers(n, SERVICE + b"Nothing") + reset(n),
    "unknown service": lambda n: headers(n, b"/a.b/c") + message(n, b"x") + reset(n),
    "path that is no text": lambda n: headers(n, b"/\xff\xfe/x", is_last=True),
    "path that is no path": lambda n: headers(n, b"nothing%00\x01", is_last=True),
    "path that is empty": lambda n: headers(n, b"", is_last=True),
    "no path": lambda n: headers(n, None, is_last=True),
    "GET": lambda n: headers(n, STEP, method=b"GET", is_last=True),
    "another content type": lambda n: headers(n, STEP, content_type=b"text/html") + message(n, ONE),
    "metadata that is no text": lambda n: headers(n, STEP, (b"x-a", b"\xff\xfe")) + message(n, ONE),
    "name of metadata that is no text": lambda n: headers(n, STEP, (b"x-\xff", b"a")) + message(n, ONE),
    "request id that is no text": lambda n: headers(n, STEP, (b"x-request-id", b"\xff")) + message(n, b""),
    "metadata that is no base64": lambda n: headers(n, STEP, (b"x-a-bin", b"!!!!")) + message(n, ONE),
    "much metadata": lambda n: headers(n, STEP, *[(b"x-a", b"v" * 100)] * 90) + message(n, ONE),
    "unknown encoding": lambda n: headers(n, STEP, encoding(b"snappy")) + message(n, ONE, compressed=1),
    "encoding that is not kept": lambda n: (
        headers(n, STEP, encoding(b"gzip")) + message(n, ONE, compressed=1)
    ),
    "encoding that is not kept, stream": lambda n: (
        headers(n, STREAM, encoding(b"gzip")) + message(n, ONE_OF_MANY, compressed=1)
    ),
    "encoded without encoding": lambda n: headers(n, STEP) + message(n, ONE, compressed=1),
    "flag that is none": lambda n: headers(n, STREAM) + message(n, ONE_OF_MANY, compressed=7),
    "deadline that is past": lambda n: headers(n, STEP, timeout(b"1n")) + message(n, ONE),
    "deadline that passes": lambda n: headers(n, STEP, timeout(b"1m")) + message(n, ONE),
    "stream with a deadline that passes": lambda n: headers(n, STREAM, timeout(b"3m")) + chunks(n, 5),
    "stream with a deadline that is past": lambda n: headers(n, STREAM, timeout(b"99u")) + chunks(n, 5),
    "deadline that is none": lambda n: headers(n, STEP, timeout(b"zzz")) + message(n, ONE),
    "deadline beyond all": lambda n: headers(n, STEP, timeout(b"99999999H")) + message(n, ONE),
    "message that is cut": lambda n: headers(n, STEP) + frame(DATA, END_STREAM, n, b"\0\0\0\0\x30abc"),
    "message of a stream that is cut": lambda n: (
        headers(n, STREAM) + frame(DATA, END_STREAM, n, b"\0\0\0\0\x30abc")
    ),
    "too large": lambda n: headers(n, STEP) + message(n, b"x", size=1 << 30, is_last=False),
    "too large, stream": lambda n: headers(n, STREAM) + message(n, b"x", size=1 << 30, is_last=False),
    "no message": lambda n: headers(n, STEP, is_last=True),
    "two messages": lambda n: headers(n, STEP) + message(n, ONE, is_last=False) + message(n, ONE),
    "no message of ours": lambda n: headers(n, STEP) + message(n, b"\xff\xff"),
    "no message of ours, reset": lambda n: headers(n, STEP) + message(n, b"\xff\xff") + reset(n),
    "no message of a stream, reset": lambda n: (
        headers(n, STREAM) + message(n, b"\xff\xff", is_last=False) + reset(n)
    ),
    "health, no message": lambda n: headers(n, HEALTH) + message(n, b"\xff\xff"),
    "health, no message, reset": lambda n: headers(n, HEALTH) + message(n, b"\xff\xff") + reset(n),
    "watch, no message": lambda n: headers(n, WATCH) + message(n, b"\xff\xff"),
    "watch, no message, reset": lambda n: headers(n, WATCH) + message(n, b"\xff\xff") + reset(n),
    "watch, reset": lambda n: headers(n, WATCH) + message(n, b"") + reset(n),
    "reflection, no message": lambda n: headers(n, REFLECTION) + message(n, b"\xff\xff"),
    "reflection, no message, reset": lambda n: headers(n, REFLECTION) + message(n, b"\xff\xff") + reset(n),
    "reflection, reset": lambda n: headers(n, REFLECTION) + message(n, b"\x3a\x00") + reset(n),
    "reflection, no text": lambda n: headers(n, REFLECTION) + message(n, b"\x22\x02\xff\xfe"),
}  # fmt: skip
"""Calls, by the number of their stream: frames that are sent at once."""

CONNECTIONS = {
    "a frame that is cut": headers(1, STEP)[:20],
    "goodbye in the middle": headers(1, STEP) + frame(GOAWAY, 0, 0, bytes(8)) + message(1, ONE),
    "a window beyond all": headers(1, STREAM) + chunks(1, 10) + window_update(1, 2**31 - 1) * 2,
    "many pings": headers(1, STREAM) + frame(PING, 0, 0, bytes(8)) * 2000,
    "no headers": frame(HEADERS, END_HEADERS, 1, b"\xff" * 6),
    "the end of headers that did not begin": frame(CONTINUATION, END_HEADERS, 1, b"abc"),
    "data of no stream": frame(DATA, 0, 99, b"abc"),
    "garbage": bytes(range(256)) * 12,
}
"""What ends a connection, or is cut by its end."""

REPEATS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        open_at(server.address, "wire", "probe", model=MODEL)
        yield server


def unwelcome(server):
    """Returns lines that are no lines of the log, and errors."""
    found = []
    for line in server.log_path.read_text().splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            found.append(line)
        else:
            if said["level"] in ("error", "critical") or "exception" in said:
                found.append(f"{said['logger']}: {said['message']}")
    return found


def answers(server):
    with grpc.insecure_channel(server.address) as channel:
        chunk = pb.Chunk(session_id="probe", model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=b"a"))
        StreamingInferenceServiceStub(channel).Step(pb.StepRequest(chunk=chunk), timeout=10)


def send(server, data):
    """Sends, reads what comes at once, and goes."""
    with contextlib.suppress(OSError), connect(server.address) as wire:
        wire.sendall(data)
        wire.settimeout(0.05)
        while wire.recv(65536):
            pass


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_whatever_it_is(server, kind):
    send(server, b"".join(CALLS[kind](2 * number + 1) for number in range(REPEATS)))
    answers(server)
    assert unwelcome(server) == []


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_a_connection_whatever_comes_over_it(server, kind):
    for _ in range(3):
        send(server, CONNECTIONS[kind])
    for first in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            wire.sendall(first)
    answers(server)
    assert unwelcome(server) == []


def test_an_exception_of_ours_is_an_error_with_its_trace(caplog):
    lower_lines_about_clients()
    logger = logging.getLogger("grpc._cython.cygrpc")

    reads = (codec._without_state, pb.StepRequest.FromString)
    for number, read in enumerate(reads):
        try:
            read(b"\xff")
        except Exception:
            logger.exception("Unexpected %d", number)
    [said] = caplog.records
    assert (said.getMessage(), said.levelno, bool(said.exc_info)) == ("Unexpected 0", logging.ERROR, True)


async def leave(address, count):
    """Calls and streams that are cancelled, or whose time passes, wherever they are."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = StreamingInferenceServiceStub(channel)

        async def unary(number):
            await stub.Step(pb.StepRequest(chunk=CHUNK), timeout=0.001 * (1 + number % 7))

        async def stream(number):
            call = stub.StreamSteps(timeout=0.001 * (1 + number % 9) if number % 2 else 30)
            for _ in range(number % 40):
                await call.write(pb.StreamStepsRequest(chunk=CHUNK))
            call.cancel()
            await call.read()

        tasks = [asyncio.create_task(kind(number)) for number in range(count) for kind in (unary, stream)]
        for task in tasks[::5]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_clients_that_leave(server):
    await leave(server.address, 150)
    await asyncio.to_thread(answers, server)
    assert unwelcome(server) == []


async def test_clients_that_leave_a_server_that_leaves(tmp_path):
    with ServerProcess(tmp_path / "data") as server:
        open_at(server.address, "wire", model=MODEL)
        os.kill(server.pid, signal.SIGTERM)
        await leave(server.address, 50)
        with contextlib.suppress(OSError):
            send(server, CALLS["stream reset while it is answered"](1))
        assert await asyncio.to_thread(server._process.wait, 30) == 0
        assert unwelcome(server) == []
