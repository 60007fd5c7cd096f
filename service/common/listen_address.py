"""Where a server listens, as a setting says it: HOST:PORT, [IPV6]:PORT or unix:/PATH. Pure."""

import ipaddress
from typing import NamedTuple, Self

UNIX = "unix:"

MAX_SOCKET_PATH_BYTES = 107
"""Linux has 108 bytes for the path of a socket, the last of them 0."""

MAX_LABEL_CHARS = 63
"""Of a name, between two dots."""


class ListenAddress(NamedTuple):
    """Made by `parse`; as text it is what `parse` takes.

    Attributes:
        host: Name or address, IPv6 without brackets; "" of a socket in the file system.
        port: 0 takes a free one.
        socket_path: "" where there is a host.
    """

    host: str
    port: int
    socket_path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a setting.

        Raises:
            ValueError: It is none of the three; says what is wrong.
        """
        if text.startswith(UNIX):
            return cls("", 0, _socket_path(text.removeprefix(UNIX)))
        host, colon, port = text.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536
        if not (colon and host and is_port):
            raise ValueError("expected HOST:PORT, [IPV6]:PORT or unix:/PATH")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            _check_ipv6(host)
        elif not host.isascii() or not host.isprintable() or any(char in host for char in ":[]%/ "):
            raise ValueError("expected HOST:PORT, an IPv6 address in brackets: [::1]:8080")
        elif not all(0 < len(label) <= MAX_LABEL_CHARS for label in host.removesuffix(".").split(".")):
            raise ValueError("expected HOST:PORT; the host is not a valid name")
        return cls(host, int(port))

    def at(self, port: int) -> Self:
        """Returns the address with the port that was taken."""
        return self._replace(port=port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it; names other than localhost are not looked up."""
        if self.socket_path or self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return address.ipv4_mapped.is_loopback
        return address.is_loopback

    def __str__(self) -> str:
        """Returns it as a setting and a client take it."""
        if self.socket_path:
            return UNIX + self.socket_path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _check_ipv6(host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise ValueError(f"the text in brackets is not an IPv6 address: {error}") from None


def _socket_path(path: str) -> str:
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ValueError("expected unix:/PATH, an absolute path")
    if not path.isprintable() or any(char in path for char in "%?#,"):
        raise ValueError("a socket's path has no %, ?, #, comma or control character: clients read a URL")
    if (size_bytes := len(path.encode(errors="surrogateescape"))) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"a socket's path has {MAX_SOCKET_PATH_BYTES} bytes at most, this one {size_bytes}; choose a "
            "shorter one"
        )
    return path
