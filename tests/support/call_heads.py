"""Calls of gRPC as bytes, for heads that no client would send."""

import socket
import ssl

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _SETTINGS = 1, 4
_END_HEADERS = 4


def call(address, path, *metadata, tls=None):
    """Sends the head of a call and no message; returns what came back until its status, as bytes.

    Args:
        address: HOST:PORT of gRPC.
        path: Of the method, bytes.
        metadata: Pairs of bytes.
        tls: `holdfast.Tls` of the client, if the server has TLS.
    """
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"), *metadata,
    ]  # fmt: skip
    head = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    with _connect(address, tls) as connection:
        connection.sendall(_PREFACE + _frame(_SETTINGS) + _frame(_HEADERS, _END_HEADERS, 1, head))
        received = b""
        while b"grpc-status" not in received:
            part = connection.recv(1 << 16)
            if not part:
                return received
            received += part
        return received


def _connect(address, tls):
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=20)
    if tls is None:
        return plain
    context = ssl.create_default_context(cafile=tls.ca)
    context.set_alpn_protocols(["h2"])
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key)
    return context.wrap_socket(plain, server_hostname="localhost")


def _text(value):
    assert len(value) < 127, "longer ones have another form"
    return bytes([len(value)]) + value


def _frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
