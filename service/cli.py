"""The command `holdfast`. A subcommand is imported when it is called: a client need not have a server."""

import importlib
import sys
from importlib.metadata import version

from service.library_environment import set_library_environment

USAGE = """usage: holdfast COMMAND [--help] [options], or holdfast --version

serve     runs a server: gRPC, metrics, and by default an embedded store
demo      streams text through a server that is killed half-way, and judges the outputs
bench     loads a running server and prints what its clients see
verify    proves from what clients recorded that nothing was lost and nothing applied twice
session   shows a session, or releases one that is held
models    shows what a server serves, and has it look for new model files
token     makes a token for a client, and the entry of it for the server's tokens file
store-acl prints the ACL rule of the store's user"""

SERVER_SIDE = {
    "serve": "service.main",
    "demo": "service.demo.main",
    "bench": "service.bench.main",
    "verify": "service.verify.main",
    "token": "service.new_token",
    "store-acl": "service.store_acl",
}
CLIENT_SIDE = {"session": "holdfast.session_command", "models": "holdfast.models_command"}


def main() -> None:
    """Runs the subcommand named on the command line and exits with its code."""
    if sys.argv[1:] == ["--version"]:
        print(f"holdfast {version('holdfast')}")
        raise SystemExit(0)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    command, arguments = sys.argv[1], sys.argv[2:]
    if command in SERVER_SIDE:
        raise SystemExit(_run_server_side(command, arguments))
    if command in CLIENT_SIDE:
        raise SystemExit(importlib.import_module(CLIENT_SIDE[command]).main(arguments))
    print(f"holdfast: no command {command!r}\n{USAGE}", file=sys.stderr)
    raise SystemExit(2)


def _run_server_side(command: str, arguments: list[str]) -> int:
    set_library_environment()
    try:
        run = importlib.import_module(SERVER_SIDE[command]).main
    except ModuleNotFoundError as error:
        needed = "pip install 'holdfast[server,embedded]'"
        print(f"holdfast {command} needs {error.name}: {needed}", file=sys.stderr)
        return 2
    code: int = run(arguments)
    return code
