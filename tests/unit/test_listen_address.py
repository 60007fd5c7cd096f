"""What a server can be told to listen on, and how it says where it listens."""

import pytest

from service.common.listen_address import MAX_SOCKET_PATH_BYTES, ListenAddress

LONG = "/" + "x" * MAX_SOCKET_PATH_BYTES


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0, ""),
        ("holdfast.example:65535", "holdfast.example", 65535, ""),
        ("[::1]:50051", "::1", 50051, ""),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1, ""),
        ("unix:/run/h.sock", "", 0, "/run/h.sock"),
        (f"unix:{LONG[:-1]}", "", 0, LONG[:-1]),
    ],
)
def test_an_address_is_read_and_printed(text, host, port, path):
    address = ListenAddress.parse(text)
    assert address == (host, port, path)
    assert str(address) == text
    assert str(address.at(7)) == (text if path else f"{text.rpartition(':')[0]}:7")


def test_a_url_of_a_socket_is_one():
    assert str(ListenAddress.parse("unix:///run/h.sock")) == "unix:/run/h.sock"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("50051", "HOST:PORT"),
        (":50051", "HOST:PORT"),
        ("localhost:", "HOST:PORT"),
        ("localhost:65536", "HOST:PORT"),
        ("localhost:-1", "HOST:PORT"),
        ("::1:50051", "in brackets"),
        ("[::1:50051", "in brackets"),
        ("[::1]x:50051", "in brackets"),
        ("[]:50051", "is not an IPv6 address"),
        ("[127.0.0.1]:50051", "is not an IPv6 address"),
        ("http://localhost:80", "in brackets"),
        ("unix:h.sock", "absolute path"),
        ("unix://host/h.sock", "absolute path"),
        ("unix:/run/", "absolute path"),
        ("unix:/run/a%20b", "%"),
        ("unix:/run/a\nb", "control character"),
        (f"unix:{LONG}", f"{MAX_SOCKET_PATH_BYTES} bytes at most, this one {MAX_SOCKET_PATH_BYTES + 1}"),
    ],
)
def test_anything_else_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        ListenAddress.parse(text)
