"""Places to listen on: whether one is free, holding one for several processes, why one cannot be had."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.common.listen_address import ListenAddress
from service.common.start_errors import StartError

_REMEDIES = {
    errno.EADDRINUSE: "in use by another process; stop that one or choose another port, 0 takes a free one",
    errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 is all that it has, 127.0.0.1 its own",
    errno.EAFNOSUPPORT: "this machine has no IPv6; 0.0.0.0 is all that it has, 127.0.0.1 its own",
    errno.EACCES: "may not be used by this user; choose a port above 1023",
    errno.EMFILE: "no descriptor is left to listen; raise `ulimit -n`",
}
_SOCKET_REMEDIES = {
    errno.EADDRINUSE: "a server listens there; stop that one or choose another path",
    errno.ENOENT: "the folder is not there; make it or choose another path",
    errno.ENOTDIR: "its folder is a file; choose another path",
    errno.ENOTSOCK: "another file is there; choose another path",
    errno.EACCES: "this user may not write the folder or use the socket in it; choose another path",
}

_MODE_MASK = 0o117
"""Of a socket file: its owner and its group may connect, as far as the umask of the process lets them."""


def hold_port(address: ListenAddress) -> socket.socket:
    """Binds a port that the workers may listen on, without listening on it.

    Raises:
        OSError: The address cannot be used, or another server listens there: SO_REUSEPORT alone would let
            two of them share the port, so it is first bound without.
    """
    try_address(address)
    return _bind(address, socket.SO_REUSEPORT)


def open_port(address: ListenAddress) -> socket.socket:
    """Binds a port for this process alone, without listening on it yet.

    Raises:
        OSError: The address cannot be used, or somebody listens there.
    """
    return _bind(address)


def try_address(address: ListenAddress) -> None:
    """Binds a port and lets it go; of a path, makes sure that nobody listens there.

    Raises:
        OSError: The address cannot be used, or somebody listens there.
    """
    if address.socket_path:
        _try_path(Path(address.socket_path))
    else:
        _bind(address).close()


@contextmanager
def socket_mode() -> Iterator[None]:
    """Has a socket file that is made meanwhile be its owner's and group's, as far as the umask says."""
    before = os.umask(_MODE_MASK)
    os.umask(before | _MODE_MASK)
    try:
        yield
    finally:
        os.umask(before)


def bind_error(flag: str, address: str, error: OSError) -> StartError:
    """Returns what an operator is told when an address cannot be listened on."""
    if isinstance(error, socket.gaierror):
        return StartError(f"{flag} {address}: the host name is unknown; give an address of this machine")
    remedies = _SOCKET_REMEDIES if ListenAddress.parse(address).socket_path else _REMEDIES
    remedy = remedies.get(error.errno or 0, f"{error.strerror or error}; choose another address")
    return StartError(f"{flag} {address}: {remedy}")


def _bind(address: ListenAddress, *options: int) -> socket.socket:
    family, place = _resolve(address)
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, asyncio sets TCP_NODELAY
    try:
        for option in (socket.SO_REUSEADDR, *options):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:  # [::] is IPv4 as well, whatever the machine's default
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(place)
    except BaseException:
        bound.close()
        raise
    return bound


def _resolve(address: ListenAddress) -> tuple[int, tuple[object, ...]]:
    """Returns family and place; of a name that has both, that of IPv4."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, _, _, _, place = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, place


def _try_path(path: Path) -> None:
    """Makes sure that a socket can be made at a path: gRPC would take the place of one that is in use."""
    if not path.parent.is_dir():
        raise OSError(errno.ENOTDIR if path.parent.exists() else errno.ENOENT, "no folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "not writable")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, "not a socket")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return  # its server is gone; gRPC replaces it
        except BlockingIOError:
            pass  # so many wait to be let in that it must be in use
    raise OSError(errno.EADDRINUSE, "in use")
