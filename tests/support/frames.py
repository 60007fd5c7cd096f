"""Frames of HTTP/2 by hand, for clients that do what no library lets them do."""

import contextlib
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(stream, path, *more, method=b"POST", content_type=b"application/grpc", is_last=False):
    """Of a call; a field that is None is left out."""
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"te", b"trailers"), (b"content-type", content_type), *more]
    block = b"".join(
        b"\0" + _length(name) + name + _length(value) + value for name, value in fields if value is not None
    )
    return frame(HEADERS, END_HEADERS | is_last * END_STREAM, stream, block)


def message(stream, data, *, compressed=0, size=None, is_last=True):
    """A message of gRPC; `size` is what it says to be, where that is not its size."""
    prefix = struct.pack(">BI", compressed, len(data) if size is None else size)
    return frame(DATA, is_last * END_STREAM, stream, prefix + data)


def reset(stream):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def window_update(stream, size):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


@contextlib.contextmanager
def connect(address):
    """A socket on which the preface has been sent; it ends with a reset."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sendall(PREFACE + frame(SETTINGS, 0, 0))
        yield wire


def _length(text):
    """HPACK's integer of 7 bits."""
    if len(text) < 127:
        return bytes([len(text)])
    rest, out = len(text) - 127, [127]
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])
