"""`holdfast model`: shows what a server serves, and has it look for new model files."""

import argparse
import sys

from holdfast.cli.calling import EXIT_FAILURE, add_server_options, ask_server
from holdfast.client.sync import Client


def main(arguments: list[str]) -> int:
    """Runs one of the subcommands.

    Returns:
        0, or 1 if the server refused, or refuses a file; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    return ask_server(f"model {options.command}", options, options.run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast model",
        description="Lists the models that a server serves, and makes it look for new model files.",
        epilog="Without a server, where holdfast[server] is installed: `inspect FILE` prints what a model "
        "file is and a contract.toml for it, `check PATH` says whether it would be served, and `add FILE "
        "--name NAME` puts it where a server finds it. Where holdfast[train] is installed, `export` makes "
        "a model of a network. Each has --help.",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    shown = commands.add_parser("list", help="prints every model and version that is served")
    shown.set_defaults(run=_list)
    reload = commands.add_parser(
        "reload", help="makes the server check its folder now; prints which models it serves and refuses"
    )
    reload.set_defaults(run=_reload)
    for command in (shown, reload):
        add_server_options(command)
    return parser


def _list(client: Client) -> int:
    for model in client.list_models():
        mark = "newest" if model.is_newest else ""
        apart = f"  {' and '.join(model.apart)} apart" if model.apart else ""
        print(f"{model.name:<32} {model.version:>6}  {mark:<6}  {model.fingerprint}{apart}")
    return 0


def _reload(client: Client) -> int:
    reloaded = client.reload_models()
    code = _list(client)
    for refusal in reloaded.refused:
        print(f"holdfast model: refused: {refusal}", file=sys.stderr)
        code = EXIT_FAILURE
    return code
