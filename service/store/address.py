"""Where a store is and how to greet it: what a URL says, and the secrets that it never shows.

    redis://[user[:password]@]host[:port][/db]               one server
    rediss://…                                               the same by TLS
    unix://[user[:password]@]/path[?db=n]                    one server, by its socket
    redis+sentinel://[user[:password]@]h1[:p1],h2[:p2]/name  the primary that sentinels name
    redis+cluster://[user[:password]@]h1[:p1],h2[:p2]        a cluster, by some of its nodes
    rediss+sentinel://…, rediss+cluster://…                  the same by TLS

Options follow after `?`, spelled as redis-py does: `db`, and for TLS `ssl_ca_certs`, `ssl_certfile`,
`ssl_keyfile`, `ssl_check_hostname`. Sentinels have users of their own: `sentinel_username`,
`sentinel_password`. Names and passwords are percent-decoded.
"""

import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from service.common.operator_files import read_file
from service.common.text_files import decoded

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379

TOPOLOGIES = {
    "redis": "single",
    "rediss": "single",
    "unix": "single",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
"""Scheme -> topology."""

_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}


@dataclass(frozen=True)
class Address:
    """Where a Redis server listens and how to greet it.

    Attributes:
        host: Name or IP address; unused with `socket_path`.
        port: TCP port.
        socket_path: Unix socket, instead of host and port.
        database: Number for SELECT.
        username: ACL user; None is the default user.
        password: Its password; None is no AUTH.
        password_file: File whose content is the password, read at each greeting, so that it can be changed.
        tls: Context of a TLS connection; None is plain.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    socket_path: Path | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"

    def at(self, host: str, port: int) -> "Address":
        """Returns the same greeting for another server."""
        return replace(self, host=host, port=port, socket_path=None)

    def greeting(self) -> list[tuple[Any, ...]]:
        """Returns the commands that a new connection starts with.

        Raises:
            OSError: The password file cannot be read.
        """
        password = self.password
        if self.password_file is not None:
            password = password_in(self.password_file)
        commands: list[tuple[Any, ...]] = []
        if password is not None:
            user = () if self.username is None else (self.username,)
            commands.append(("AUTH", *user, password))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands


def password_in(path: Path) -> str:
    """Returns the password that a file holds, without the end of its line and a byte order mark.

    Raises:
        OSError: It cannot be read, or is no text.
    """
    try:
        return decoded(read_file(path).data).strip()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "it is not UTF-8 text", str(path)) from None


class Target(NamedTuple):
    """What a URL names.

    Attributes:
        topology: single, sentinel or cluster.
        addresses: The server; or the sentinels; or some nodes of the cluster.
        group: Name of the primary among the sentinels; "" elsewhere.
        primary: How to greet the primary that sentinels name; host and port are theirs to say.
    """

    topology: str
    addresses: tuple[Address, ...]
    group: str
    primary: Address

    def __str__(self) -> str:
        if self.topology == "single":
            return str(self.addresses[0])
        servers = ",".join(str(address).partition("://")[2].partition("/")[0] for address in self.addresses)
        scheme = "rediss" if self.addresses[0].tls else "redis"
        return f"{scheme}+{self.topology}://{servers}" + (f"/{self.group}" if self.group else "")


def parse_url(url: str, *, password_file: Path | None = None) -> Target:
    """Reads the URL of a store; its forms are at the head of this file.

    Args:
        url: One of them.
        password_file: Holds the password of the data servers, instead of the URL.

    Raises:
        ValueError: It cannot be read; the text shows nothing of user, password or options' values.
    """
    parts = urlsplit(url)
    if parts.scheme not in TOPOLOGIES:
        expected = ", ".join(f"{scheme}://" for scheme in TOPOLOGIES)
        raise ValueError(f"the scheme is not one of {expected}")
    topology = TOPOLOGIES[parts.scheme]
    userinfo, _, servers = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    _check_options(parts.scheme, topology, options)
    username, colon, password = userinfo.partition(":")
    if colon and password_file is not None:
        raise ValueError("it has a password, and so has the password file; use only one of them")
    primary = Address(
        database=_database(parts, topology, options),
        username=unquote(username) or None,
        password=unquote(password) if colon else None,
        password_file=password_file,
        tls=_tls(options) if parts.scheme.startswith("rediss") else None,
    )
    if parts.scheme == "unix":
        path = unquote(servers + parts.path)
        if not path:
            raise ValueError("a path is missing after unix://")
        return Target(topology, (replace(primary, socket_path=Path(path)),), "", primary)
    greeting, group, port = primary, "", DEFAULT_PORT
    if topology == "sentinel":
        group, port = unquote(parts.path.strip("/")), SENTINEL_PORT
        if not group:
            raise ValueError("the name of the primary is missing: redis+sentinel://host,host/NAME")
        greeting = replace(
            primary,
            database=0,
            username=options.get("sentinel_username"),
            password=options.get("sentinel_password"),
            password_file=None,
        )
    addresses = tuple(_located(greeting, server, port) for server in servers.split(","))
    if topology == "single" and len(addresses) > 1:
        raise ValueError("for several servers, use redis+sentinel:// or redis+cluster://")
    return Target(topology, addresses, group, primary)


def _check_options(scheme: str, topology: str, options: Mapping[str, str]) -> None:
    known = {"db"} if topology != "cluster" else set()
    known |= _SENTINEL_OPTIONS if topology == "sentinel" else set()
    known |= _TLS_OPTIONS if scheme.startswith("rediss") else set()
    for option in options:
        if option not in known:
            expected = ", ".join(sorted(known)) or "none"
            raise ValueError(f"option {option!r} is not known here; there are {expected}")


def _database(parts: SplitResult, topology: str, options: Mapping[str, str]) -> int:
    text = options.get("db", "0")
    if topology == "single" and parts.scheme != "unix" and parts.path.strip("/"):
        text = parts.path.strip("/")
    if topology == "cluster" and parts.path.strip("/"):
        raise ValueError("a cluster has only one database; leave out the path after its nodes")
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("expected a number for the database")
    return int(text)


def _located(greeting: Address, server: str, default_port: int) -> Address:
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, str(default_port)
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError("expected each server as HOST or HOST:PORT")
    return greeting.at(unquote(host), int(port))


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    """Returns the context for a server whose certificate is signed by the system's or a named authority."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"a file of its TLS options cannot be used: {error}") from None
    checked = options.get("ssl_check_hostname", "true").lower()
    if checked not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("expected true or false for ssl_check_hostname")
    context.check_hostname = checked in ("true", "1", "yes")
    return context
