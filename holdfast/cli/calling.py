"""What the commands that call a server have in common: its address, credentials, how they fail."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.client.sync import Client
from holdfast.client.tls import Tls, channel_credentials
from holdfast.errors import HoldfastError

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 2

TARGET = "127.0.0.1:50051"


def add_server_options(parser: Any, *, target: str | None = TARGET) -> None:
    """Adds the options that say which server, and as whom.

    Args:
        parser: Of argparse, or a group of one.
        target: The server that is called by default; None asks for one.
    """
    default = f" (default: {target})" if target else ""
    parser.add_argument(
        "--target", default=target, metavar="HOST:PORT", help=f"gRPC address of the server{default}"
    )
    parser.add_argument("--token-file", type=Path, help="file with the token to send with every call")
    parser.add_argument("--tls-ca", type=Path, help="certificate authorities to trust, PEM; enables TLS")
    parser.add_argument("--tls-cert", type=Path, help="client certificate, PEM, for mutual TLS")
    parser.add_argument("--tls-key", type=Path, help="private key of --tls-cert, PEM")


def credentials(options: argparse.Namespace) -> dict[str, Any]:
    """Returns `token` and `tls` for a client, as the options say.

    Raises:
        OSError: A file cannot be read.
        ValueError: Certificate or key is missing.
    """
    token = options.token_file.read_text("utf-8-sig").strip() if options.token_file else None
    tls: bool | Tls = False
    if options.tls_ca or options.tls_cert or options.tls_key:
        tls = Tls(options.tls_ca, options.tls_cert, options.tls_key)
        channel_credentials(tls)
    return {"token": token, "tls": tls}


def ask_server(command: str, options: argparse.Namespace, ask: Callable[[Client], int]) -> int:
    """Asks the server that the options name; returns the code that `ask` does, or says why not."""
    try:
        with Client(options.target, **credentials(options)) as client:
            return ask(client)
    except (OSError, ValueError) as error:
        return failed(command, error)
    except HoldfastError as error:
        return failed(command, f"{error.reason or error.code}: {error}")


def failed(command: str, reason: object, code: int = EXIT_FAILURE) -> int:
    """Prints one line about why a command failed; returns the exit code."""
    if isinstance(reason, OSError) and reason.filename and reason.strerror:
        reason = f"{reason.filename}: {reason.strerror.lower()}"
    print(f"holdfast {command}: {' '.join(str(reason).split())}", file=sys.stderr)
    return code
