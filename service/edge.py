"""Who can reach a server: what is checked of its addresses, TLS and tokens before it starts."""

import ipaddress
import logging

from service.config import Settings
from service.errors import StartError

_log = logging.getLogger(__name__)


def check_edge(settings: Settings) -> None:
    """Makes sure that what is said to a server, and by whom, is protected as far as it can be reached.

    HTTP is not looked at: /metrics, /livez and /readyz say no ids and no contents, change nothing, and
    Prometheus and probes have to reach them.

    Raises:
        StartError: Plain text could be read on a network, or settings of TLS do not fit together.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing, given = ("--tls-key", "--tls-cert") if settings.tls_cert else ("--tls-cert", "--tls-key")
        raise StartError(f"{missing} is missing beside {given}")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise StartError("--tls-client-ca needs --tls-cert and --tls-key")
    if is_loopback(settings.grpc_address):
        return
    if settings.tls_cert is None and not settings.allow_plaintext:
        raise StartError(
            f"--grpc-address {settings.grpc_address} can be reached from other machines and would speak "
            "plain text: give --tls-cert and --tls-key, or --allow-plaintext where a network encrypts"
        )
    if settings.tls_cert is None and settings.tokens_file is not None:
        _log.warning("tokens come to %s in plain text", settings.grpc_address)
    if settings.tokens_file is None and settings.tls_client_ca is None:
        _log.warning(
            "whoever reaches %s may use every session: give --tokens-file or --tls-client-ca",
            settings.grpc_address,
        )


def is_loopback(address: str) -> bool:
    """Tells whether only this machine reaches HOST:PORT; names other than localhost are not looked up."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
