"""A client of HTTP/2 that does what no gRPC library does: sends halves, reads nothing, grants no window."""

import contextlib
import socket
import struct
import threading

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4

_FIRST_WINDOW_BYTES = 65_535
_FRAME_BYTES = 16_384
_SEND_LIMIT_S = 10


def frame(kind, body=b"", *, flags=0, stream=0):
    """Returns a frame."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def message(size_bytes_or_body):
    """Returns a gRPC message, by its body, or of zeros."""
    body = bytes(size_bytes_or_body) if isinstance(size_bytes_or_body, int) else size_bytes_or_body
    return b"\0" + struct.pack(">I", len(body)) + body


def headers(path, metadata=()):
    """Returns the header block of a call, nothing compressed."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(value):
    raw = value.encode()
    return _length(len(raw)) + raw


def _length(value):
    if value < 127:
        return bytes([value])
    encoded, value = b"\x7f", value - 127
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


class Connection:
    """One connection; keeps to the windows it is granted, so that the server has no reason to end it.

    Args:
        address: HOST:PORT.
        window_bytes: What the server may send on each stream; nothing more is ever granted.
        reads: Takes what comes off the socket; without it no window beyond the first is known.

    Attributes:
        ended: Streams that the server has ended.
    """

    def __init__(self, address, *, window_bytes=_FIRST_WINDOW_BYTES, reads=True):
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.settimeout(_SEND_LIMIT_S)
        self._next_stream = 1
        self._changed = threading.Condition()
        self._window_bytes = _FIRST_WINDOW_BYTES  # of the connection
        self._initial_bytes = _FIRST_WINDOW_BYTES
        self._windows = {}
        self.ended = set()
        self.is_open = True
        self._send(PREFACE + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)))
        if reads:
            threading.Thread(target=self._read_all, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def call(self, path, metadata=()):
        """Begins a call; returns its stream."""
        stream = self._next_stream
        self._next_stream += 2
        self._windows[stream] = 0  # beyond the initial window
        self._send(frame(HEADERS, headers(path, metadata), flags=END_HEADERS, stream=stream))
        return stream

    def send(self, stream, data, *, ends=False, within_s=_SEND_LIMIT_S):
        """Sends as much as the windows allow; returns how much that was.

        Args:
            stream: Of a call.
            data: Part of a message, or several.
            ends: No more will come.
            within_s: Longest wait for a window, seconds.
        """
        sent = 0
        while sent < len(data):
            with self._changed:
                if not self._changed.wait_for(lambda: self._room(stream) != 0, within_s):
                    return sent
                size = min(self._room(stream), _FRAME_BYTES, len(data) - sent)
                if size < 0:
                    return sent
                self._windows[stream] -= size
                self._window_bytes -= size
            flags = END_STREAM if ends and sent + size == len(data) else 0
            self._send(frame(DATA, data[sent : sent + size], flags=flags, stream=stream))
            sent += size
        return sent

    def reset(self, stream):
        """Gives a call up."""
        self._send(frame(RST_STREAM, struct.pack(">I", 8), stream=stream))

    def _room(self, stream):
        if stream in self.ended or not self.is_open:
            return -1
        return max(0, min(self._window_bytes, self._initial_bytes + self._windows[stream]))

    def _send(self, raw):
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(raw)

    def _read_all(self):
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = self._exactly(9)
                size = int.from_bytes(head[:3], "big")
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                self._take(kind, flags, stream, self._exactly(size))
        with self._changed:
            self.is_open = False
            self._changed.notify_all()

    def _exactly(self, size):
        parts = b""
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except TimeoutError:
                continue
            if not part:
                raise EOFError
            parts += part
        return parts

    def _take(self, kind, flags, stream, body):
        if kind == SETTINGS and not flags & ACK:
            self._send(frame(SETTINGS, flags=ACK))
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, body, flags=ACK))
        with self._changed:
            if kind == SETTINGS and not flags & ACK:
                pairs = struct.iter_unpack(">HI", body)
                self._initial_bytes = dict(pairs).get(INITIAL_WINDOW_SIZE, self._initial_bytes)
            elif kind == WINDOW_UPDATE:
                more = int.from_bytes(body, "big")
                if stream:
                    self._windows[stream] = self._windows.get(stream, 0) + more
                else:
                    self._window_bytes += more
            elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self.ended.add(stream)
            self._changed.notify_all()
