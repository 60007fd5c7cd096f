"""Ports to listen on: whether one is free, holding one for several processes, why one cannot be had."""

import errno
import socket

from service.errors import StartError

_REMEDIES = {
    errno.EADDRINUSE: "in use by another process; stop that one or choose another port, 0 takes a free one",
    errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 is all that it has, 127.0.0.1 its own",
    errno.EACCES: "may not be used by this user; choose a port above 1023",
}


def hold_port(host: str, port: int) -> socket.socket:
    """Binds a port that the workers may listen on, without listening on it.

    Args:
        host: Name or address to bind; IPv6 in brackets.
        port: 0 takes a free one.

    Raises:
        OSError: The address cannot be used, or another server listens there: SO_REUSEPORT alone would let
            two of them share the port, so it is first bound without.
    """
    try_port(host, port)
    family, address = _resolve(host, port)
    holder = socket.socket(family)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(address)
    return holder


def try_port(host: str, port: int) -> None:
    """Binds a port and lets it go.

    Raises:
        OSError: The address cannot be used, or somebody listens there.
    """
    family, address = _resolve(host, port)
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)


def bind_error(flag: str, address: str, error: OSError) -> StartError:
    """Returns what an operator is told when an address cannot be listened on."""
    if isinstance(error, socket.gaierror):
        return StartError(f"{flag} {address}: the name is not known; give an address of this machine")
    remedy = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; choose another address")
    return StartError(f"{flag} {address}: {remedy}")


def _resolve(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    return family, address
