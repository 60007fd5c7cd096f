"""TLS of the server: certificates that may be replaced on disk while it runs."""

import logging
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from service.common.text_files import without_mark
from service.common.watched_files import WatchedFiles

_log = logging.getLogger(__name__)


class TlsFilesError(Exception):
    """The files cannot be used; the message says why."""


class ServerTls:
    """Certificate and key of the server, and the authorities of its clients.

    Args:
        cert: Chain of certificates, PEM, the server's own first.
        key: Its private key, PEM.
        client_ca: Authorities, PEM; clients have to present a certificate of theirs. None: they need none.

    Raises:
        TlsFilesError: The files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._name = f"--tls-cert {cert}"
        self._flags = {str(cert): "--tls-cert", str(key): "--tls-key", str(client_ca): "--tls-client-ca"}
        self._asks_clients = client_ca is not None
        self._files = WatchedFiles([cert, key, *([client_ca] if client_ca is not None else [])])
        configuration = self._read_changed()
        assert configuration is not None, "bug: files just read are not new"
        self._latest = self._offered = configuration

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a secure port takes; every new connection uses the latest files."""
        newer: Any = self._newer  # the stubs do not know that None is "no change"
        return grpc.dynamic_ssl_server_credentials(self._latest, newer, self._asks_clients)

    def refresh(self) -> None:
        """Looks at the files again. Broken ones are told once, and those before stay in use."""
        try:
            configuration = self._read_changed()
        except TlsFilesError as error:
            _log.error("%s; new connections go on with the files before", error)
            return
        if configuration is not None:
            self._latest = configuration
            _log.info("%s was replaced; new connections use it", self._name)

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what gRPC does not have yet. Called by its threads, one at a time."""
        latest = self._latest
        if latest is self._offered:
            return None
        self._offered = latest
        return latest

    def _read_changed(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            contents = self._files.read_changed()
        except OSError as error:
            flag = self._flags.get(str(error.filename), "--tls-cert")
            reason = (error.strerror or str(error)).lower()
            raise TlsFilesError(
                f"{flag} {error.filename}: {reason}; name a PEM file that can be read"
            ) from None
        if contents is None:
            return None
        try:
            cert, key, *authorities = (without_mark(file.data) for file in contents)
            _check(cert, key, authorities)
        except FileNotFoundError:
            raise TlsFilesError(f"{self._name}: TLS needs /proc, which is not mounted") from None
        except (ssl.SSLError, ValueError) as error:
            self._files.judge()
            reason = " ".join(str(error).split())
            raise TlsFilesError(
                f"{self._name}: it, its key or the clients' authorities are not PEM, or do not belong "
                f"together: {reason}"
            ) from None
        except OSError as error:
            raise TlsFilesError(f"{self._name}: it cannot be checked now: {error}") from None
        self._files.judge()
        return grpc.ssl_server_certificate_configuration([(key, cert)], *authorities)


def _check(cert: bytes, key: bytes, authorities: Sequence[bytes]) -> None:
    """Makes sure that certificate and key belong together, since gRPC says so only when a client comes.

    Raises:
        ssl.SSLError, ValueError: They do not, or something is no PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = os.memfd_create("holdfast-tls")  # a path is what OpenSSL wants, and a key stays off the disk
    try:
        os.write(files, cert + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{files}", password=lambda: b"")
    finally:
        os.close(files)
    for authority in authorities:
        context.load_verify_locations(cadata=authority.decode("ascii"))
