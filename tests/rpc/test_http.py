"""The HTTP side of a running server: its pages, and clients that say too little, too much, or nonsense."""

import contextlib
import http.client
import json
import select
import socket
import ssl
import struct
from pathlib import Path

import pytest

from service.process.http_connection import KEEP_ALIVE_S
from service.settings.descriptors import HTTP_COUNT
from tests.support.server import get
from tests.support.waiting import wait_for

SLOW = 300
RESETS = 500
GROWTH_BYTES = 24 << 20
"""What hostile connections may add to the memory of a server that has served a scrape."""

PIPELINED = 50
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"


def connect(server, receive_bytes=None):
    host, _, port = server.http.rpartition(":")
    connection = socket.socket()
    connection.settimeout(20)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((host, int(port)))
    return connection


def ask(server, method, path, body=None, **headers):
    """Returns status, headers and body of a reply."""
    connection = http.client.HTTPConnection(server.http, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, {name.lower(): text for name, text in reply.getheaders()}, reply.read()


def read_all(connection):
    """Returns what comes until the server closes; a reset is an end as well."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def is_open(connection):
    """Tells whether the server has not closed a connection on which it sends nothing."""
    with contextlib.suppress(OSError):
        return not select.select([connection], [], [], 0)[0] or connection.recv(1, socket.MSG_PEEK) != b""
    return False


def resident_bytes(server):
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096


def open_count(server):
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def thread_count(server):
    return len(list(Path(f"/proc/{server.pid}/task").iterdir()))


@pytest.fixture
def unharmed(server):
    """Sees that a test leaves the server live, no more threads, little more memory, nothing said."""
    get(server, "/metrics")
    threads, resident = thread_count(server), resident_bytes(server)
    said = server.log_path.stat().st_size
    yield
    assert get(server, "/livez") == (200, "ok\n")
    assert thread_count(server) <= threads
    assert resident_bytes(server) - resident < GROWTH_BYTES
    with server.log_path.open() as log:
        log.seek(said)
        lines = [json.loads(line) for line in log]  # nothing beside the log's form
    assert not [line for line in lines if line["level"] in ("warning", "error", "critical")]


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
def test_a_page_has_get_head_and_options(server, path):
    status, headers, body = ask(server, "GET", path)
    assert (status, headers["content-length"]) == (200, str(len(body)))
    assert "server" not in headers
    assert ask(server, "GET", f"{path}?x=1")[0] == 200
    status, head, nothing = ask(server, "HEAD", path)
    assert (status, head["content-type"], nothing) == (200, headers["content-type"], b"")
    assert abs(int(head["content-length"]) - len(body)) < 1000  # that of the page; figures grow
    status, headers, nothing = ask(server, "OPTIONS", path)
    assert (status, headers["allow"], nothing) == (204, "GET, HEAD, OPTIONS", b"")
    for method in ("POST", "DELETE", "PUT", "TRACE", "BREW"):
        status, headers, _ = ask(server, method, path)
        assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_other_paths_and_bodies_are_refused(server):
    status, _, body = ask(server, "GET", "/metrics/")
    assert (status, b"/livez" in body) == (404, True)
    assert ask(server, "OPTIONS", "/nothing")[0] == 404
    for fields in (
        b"Content-Length: 1000\r\n\r\n" + bytes(1000),
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx",
    ):
        with connect(server) as connection:
            connection.sendall(b"POST /metrics HTTP/1.1\r\nHost: h\r\n" + fields)
            said = read_all(connection)
        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in said


def test_a_connection_is_kept_for_the_next_scrape(server):
    connection = http.client.HTTPConnection(server.http, timeout=20)
    with contextlib.closing(connection):
        connection.connect()
        used = connection.sock
        for _ in range(3):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read()
            assert connection.sock is used


def test_connections_that_say_a_byte_now_and_then_or_read_nothing_hold_nothing(server, unharmed):
    before = open_count(server)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server, 4096)) for _ in range(16)]
        for connection in silent:
            connection.sendall(METRICS * 60)  # and reads none of the replies
        slow = []
        for count in range(SLOW):
            slow.append(stack.enter_context(connect(server)))
            slow[-1].sendall(b"G")
            if count % 50 == 0:
                assert get(server, "/livez")[0] == get(server, "/readyz")[0] == 200
        wait_for(lambda: sum(map(is_open, slow)) <= HTTP_COUNT)
        wait_for(lambda: open_count(server) <= before + HTTP_COUNT)  # some are accepted before others close

        def are_let_go():
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(b"E")  # a byte more is no whole request
            assert get(server, "/livez")[0] == 200
            return open_count(server) <= before

        wait_for(are_let_go, what="who does not send or read is waited for")
        for connection in silent:
            assert len(read_all(connection)) < 60 * 10_000, "given up in the middle"


def test_resets_are_no_news(server, unharmed):
    for count in range(RESETS):
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall((METRICS, LIVEZ, b"GET / HT")[count % 3])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\nHost: h\r\nX: " + b"x" * (1 << 17),
        b"GET /livez HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * (1 << 14),
        b"GET /" + b"x" * (1 << 17),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\xff" * 5000,
        b"\r\n\r\n\r\nlivez\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET http://[::1/livez HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_what_is_no_request_is_refused_and_the_connection_closed(server, unharmed, sent):
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # it may be refused before all of it was sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        said = read_all(connection)
        assert not said or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def test_tls_is_refused_on_the_plain_port(server, unharmed):
    context = ssl.create_default_context()
    with connect(server) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname="localhost")


def test_pipelined_requests_are_answered_in_order(server, unharmed):
    with connect(server) as connection:
        connection.sendall(
            LIVEZ * PIPELINED + b"GET /nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        )
        said = read_all(connection)
    assert said.count(b"HTTP/1.1 200 ") == PIPELINED
    assert said.rpartition(b"HTTP/1.1 ")[2].startswith(b"404")


def test_who_ends_sending_gets_the_answer_to_a_whole_request_and_to_no_other(server, unharmed):
    for sent, status in ((METRICS, b"200"), (LIVEZ, b"200"), (METRICS[:-2], b"")):
        with connect(server) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection).partition(b" ")[2][:3] == status


def test_whoever_connects_last_is_answered_and_the_oldest_is_closed(server, unharmed):
    with contextlib.ExitStack() as stack:
        kept = []
        for _ in range(HTTP_COUNT + 10):
            kept.append(stack.enter_context(connect(server)))
            kept[-1].sendall(LIVEZ)
            reply = b""
            while not reply.endswith(b"ok\n"):  # head and body may come apart
                part = kept[-1].recv(1000)
                assert part, "closed before its reply was whole"
                reply += part
        wait_for(lambda: not any(map(is_open, kept[:10])), timeout_s=KEEP_ALIVE_S / 2)
        assert is_open(kept[-1])
