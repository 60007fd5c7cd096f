"""Who can reach a server: what is checked of its addresses, TLS and tokens before it starts."""

import logging

from service.common.listen_address import ListenAddress
from service.common.redaction import mask_url
from service.common.start_errors import ConfigurationError
from service.settings.schema import EMBEDDED, Settings
from service.store.address import parse_url

_log = logging.getLogger(__name__)


def check_edge(settings: Settings) -> None:
    """Makes sure that what is said to a server, and by whom, is protected as far as it can be reached.

    HTTP is not looked at: /metrics, /livez and /readyz say no ids and no contents, change nothing, and
    Prometheus and probes have to reach them.

    Raises:
        ConfigurationError: Plain text could be read on a network, settings do not fit together, or the URL
            of the store cannot be read.
    """
    _check_tls(settings)
    _check_store(settings)
    grpc_address = ListenAddress.parse(settings.grpc_address)
    if grpc_address.socket_path and settings.workers > 1:
        raise ConfigurationError(
            f"--grpc-address {settings.grpc_address}: several processes cannot listen on one such socket; "
            "give --workers 1, or HOST:PORT"
        )
    if grpc_address.port and grpc_address == ListenAddress.parse(settings.http_address):
        raise ConfigurationError(
            f"--http-address {settings.http_address}: gRPC has this address too; give it another port"
        )
    if grpc_address.is_loopback:
        return
    if settings.tls_cert is None and not settings.allow_plaintext:
        raise ConfigurationError(
            f"--grpc-address {settings.grpc_address} is reachable from other machines without "
            "TLS: set --tls-cert and --tls-key, or --allow-plaintext if the network encrypts"
        )
    if settings.tls_cert is None and settings.tokens_file is not None:
        _log.warning("tokens come to %s in plain text", settings.grpc_address)
    if settings.tokens_file is None and settings.tls_client_ca is None:
        _log.warning(
            "whoever reaches %s may use every session: give --tokens-file or --tls-client-ca",
            settings.grpc_address,
        )


def _check_tls(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing, given = ("--tls-key", "--tls-cert") if settings.tls_cert else ("--tls-cert", "--tls-key")
        raise ConfigurationError(f"{given} needs {missing}: set both or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigurationError("--tls-client-ca needs --tls-cert and --tls-key")


def _check_store(settings: Settings) -> None:
    if settings.store == EMBEDDED:
        return
    try:
        parse_url(settings.store, password_file=settings.store_password_file)
    except ValueError as error:
        raise ConfigurationError(f"--store {mask_url(settings.store)}: {error}") from None
