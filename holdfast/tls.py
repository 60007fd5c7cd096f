"""Credentials of a TLS connection."""

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection, PEM. They are read when the client is made.

    Attributes:
        ca: Authorities to trust; None is those of the system.
        cert: Certificate of this client and those between it and its authority, for mutual TLS.
        key: Its private key.

    Raises:
        ValueError: One of `cert` and `key` is given without the other.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None

    def __post_init__(self) -> None:
        """Checks what belongs together."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key of a client belong together, and one of them is missing")


def channel_credentials(tls: bool | Tls) -> grpc.ChannelCredentials:
    """Reads the files.

    Raises:
        OSError: A file cannot be read.
    """
    files = tls if isinstance(tls, Tls) else Tls()
    return grpc.ssl_channel_credentials(_read(files.ca), _read(files.key), _read(files.cert))


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
