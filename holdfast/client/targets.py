"""Addresses of replicas as a target of gRPC, which keeps a connection to each and gives them turns."""

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

Options = list[tuple[str, Any]]

_LOCAL_SCHEMES = ("unix", "unix-abstract")
_SCHEMES = ("dns", "ipv4", "ipv6")


def to_target(address: str | Sequence[str]) -> tuple[str, Options]:
    """Returns the target of a channel, and the options that it needs.

    Args:
        address: One target as gRPC takes it, HOST:PORT among them; or a list of HOST:PORT.

    Raises:
        ValueError: An address has no port, or a list is empty, or has something that is not HOST:PORT or
            several versions of IP.
        OSError: A name in a list is not known.
    """
    if isinstance(address, str):
        if not _has_port(address):
            raise ValueError(f"no port in {address!r}, expected HOST:PORT")
        return address, []
    places = [_place(entry) for entry in address]
    versions = {ipaddress.ip_address(host).version for host, _ in places}
    if len(versions) != 1:
        raise ValueError(
            f"addresses are {list(address)}, expected at least one, all of IPv4 or all of IPv6"
        )
    if versions == {6}:
        target = "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in places)
    else:
        target = "ipv4:" + ",".join(f"{host}:{port}" for host, port in places)
    return target, [("grpc.default_authority", address[0])]  # what a certificate is compared with


def is_local(target: str) -> bool:
    """Whether a target lies on this machine as a whole: loopback addresses, localhost, unix sockets."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in _LOCAL_SCHEMES:
        return True
    places = rest.rpartition("/")[2] if colon and scheme in _SCHEMES else target
    return all(_is_loopback(place) for place in places.split(","))


def name_in(target: str) -> str:
    """Returns the host name that a target has a resolver find addresses for; "" if it has none."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme == "dns":
        target = rest.rpartition("/")[2]
    elif "/" in target or (colon and scheme in (*_LOCAL_SCHEMES, *_SCHEMES)):
        return ""
    host = target.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return ""


def _has_port(target: str) -> bool:
    """Whether a target names its port; without one gRPC takes 443. Not all schemes have one."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme == "dns":
        target = rest.rpartition("/")[2]
    elif "/" in target or (colon and scheme in (*_LOCAL_SCHEMES, *_SCHEMES)):
        return True
    host, colon, port = target.rpartition(":")
    return bool(colon and port) and (":" not in host or (host.startswith("[") and host.endswith("]")))


def _is_loopback(place: str) -> bool:
    host, _, port = place.rpartition(":")
    if not port.isdecimal() or (place.count(":") > 1 and not place.startswith("[")):
        host = place  # without a port
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _place(entry: str) -> tuple[str, int]:
    host, colon, port = entry.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"address is {entry!r}, expected HOST:PORT")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    ipv4_first = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(ipv4_first[0][4][0]), int(port)
