"""`holdfast models`: shows what a server serves, and has it look for new model files."""

import argparse
import sys
from pathlib import Path

from holdfast.client import Client
from holdfast.errors import HoldfastError
from holdfast.tls import Tls

EXIT_FAILURE = 1


def main(arguments: list[str]) -> int:
    """Runs one of the subcommands.

    Returns:
        0, or 1 if the server refused, or refuses a file; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    try:
        token = options.token_file.read_text().strip() if options.token_file else None
        tls = Tls(options.tls_ca) if options.tls_ca else False
        with Client(options.target, token=token, tls=tls) as client:
            code: int = options.run(client)
    except OSError as error:
        print(f"holdfast models: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except HoldfastError as error:
        print(f"holdfast models: {error.reason or error.code}: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast models", description="Shows what a server serves, and has it look for new model files."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = commands.add_parser("list", help="prints every model and version that is served")
    shown.set_defaults(run=_list)
    reload = commands.add_parser(
        "reload", help="has the server look at its folder now; prints what it serves then, and refuses"
    )
    reload.set_defaults(run=_reload)
    for command in (shown, reload):
        command.add_argument(
            "--target", default="127.0.0.1:50051", help="HOST:PORT of gRPC (default: %(default)s)"
        )
        command.add_argument("--token-file", type=Path, help="has the token to send with every call")
        command.add_argument("--tls-ca", type=Path, help="authorities, PEM: speak TLS and trust these")
    return parser


def _list(client: Client) -> int:
    for model in client.models():
        mark = "newest" if model.is_newest else ""
        print(f"{model.name:<32} {model.version:>6}  {mark:<6}  {model.fingerprint}")
    return 0


def _reload(client: Client) -> int:
    reloaded = client.reload_models()
    code = _list(client)
    for refusal in reloaded.refused:
        print(f"holdfast models: refused: {refusal}", file=sys.stderr)
        code = EXIT_FAILURE
    return code
