"""Credentials of a TLS connection."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class Files(NamedTuple):
    """What the files of a `Tls` hold, as gRPC takes it."""

    ca: bytes | None
    key: bytes | None
    cert: bytes | None


def read_files(tls: bool | Tls) -> Files:
    """Reads the files.

    Raises:
        OSError: A file cannot be read.
    """
    files = tls if isinstance(tls, Tls) else Tls()
    return Files(_read(files.ca), _read(files.key), _read(files.cert))


def channel_credentials(tls: bool | Tls | Files) -> grpc.ChannelCredentials:
    """Returns credentials; gRPC stays in the process for as long as they do.

    Raises:
        OSError: A file cannot be read.
    """
    return grpc.ssl_channel_credentials(*(tls if isinstance(tls, Files) else read_files(tls)))


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
