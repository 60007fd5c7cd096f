"""The command `holdfast`. A subcommand is imported when it is called: a client need not have a server."""

import sys

USAGE = """usage: holdfast serve [--help] [options]

serve   runs a server: gRPC, metrics, and by default an embedded store"""


def main() -> None:
    """Runs the subcommand named on the command line and exits with its code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "serve":
        raise SystemExit(_serve(arguments))
    print(f"holdfast: no command {command!r}\n{USAGE}", file=sys.stderr)
    raise SystemExit(2)


def _serve(arguments: list[str]) -> int:
    try:
        from service.main import main as serve
    except ModuleNotFoundError as error:
        print(
            f"holdfast serve needs {error.name}: pip install 'holdfast[server,embedded]'", file=sys.stderr
        )
        return 2
    return serve(arguments)
