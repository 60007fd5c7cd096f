"""The command `holdfast`. A subcommand is imported when it is called: a client need not have a server.

What gRPC reads from the environment must stand there before it is loaded, so this file does not load it;
nor anything else that takes its time: `holdfast token --help` is there at once.
"""

import importlib
import sys
from types import TracebackType

import holdfast
from service.common.collector import sparing_imports
from service.process.library_environment import set_library_environment
from service.process.standard_streams import obeying_pipes, open_missing

USAGE = """usage: holdfast COMMAND [--help] [options], or holdfast --version

serve     runs a server: gRPC, metrics, and by default an embedded store
demo      streams tokens through a server that is killed half-way, and checks the outputs
bench     loads a running server and prints what its clients see
verify    checks what clients recorded: nothing lost, nothing applied twice, no wrong output
pipe      steps sessions by the events of a stream or a file, exactly once
generate  has a session generate, and prints the tokens as they come
watch     shows what others do with a session, as it happens
session   lists, shows, copies, saves, restores, exports, imports, deletes and releases sessions
model     list, reload: models of a server; inspect, check, add: model files; export: makes a model
token     create: makes a token for a client, and its entry for the server's tokens file
store     acl: prints the ACL rule for Holdfast's user in the store"""

SERVER_SIDE = {
    "serve": "holdfast.cli.serve",
    "demo": "holdfast.cli.demo",
    "bench": "holdfast.cli.bench",
    "verify": "holdfast.cli.verify",
    "token": "holdfast.cli.token",
    "store": "holdfast.cli.store",
}
MODEL_FILES = ("inspect", "check", "add")
"""Subcommands of `model` that call no server, but need what one has."""
CLIENT_SIDE = {
    "generate": "holdfast.cli.generate",
    "pipe": "holdfast.cli.pipe",
    "session": "holdfast.cli.session",
    "watch": "holdfast.cli.watch",
    "model": "holdfast.cli.model",
}


def main() -> None:
    """Runs the subcommand named on the command line and exits with its code; by SIGINT after Ctrl-C."""
    open_missing()
    sys.excepthook = _uncaught
    raise SystemExit(obeying_pipes(f"holdfast {' '.join(sys.argv[1:2])}".strip(), _dispatch))


def _dispatch() -> int:
    if sys.argv[1:] == ["--version"]:
        print(f"holdfast {holdfast.__version__}")
        return 0
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        return 0 if len(sys.argv) > 1 else 2
    command, arguments = sys.argv[1], sys.argv[2:]
    if command in SERVER_SIDE:
        return _run_server_side(command, SERVER_SIDE[command], arguments)
    if command == "model" and arguments[:1] and arguments[0] in MODEL_FILES:
        return _run_server_side(command, "holdfast.cli.model_files", arguments)
    if [command, *arguments[:1]] == ["model", "export"]:
        return _run("holdfast.cli.export", arguments[1:])
    if command in CLIENT_SIDE:
        return _run(CLIENT_SIDE[command], arguments)
    print(f"holdfast: no command {command!r}{_meant(command)}\n{USAGE}", file=sys.stderr)
    return 2


def _meant(command: str) -> str:
    """Returns which command may be meant instead, as the rest of a line."""
    import difflib  # takes its time, and only a mistake needs it

    commands = {name: name for name in (*SERVER_SIDE, *CLIENT_SIDE)} | {"export": "model export"}
    nearest = difflib.get_close_matches(command, commands, n=1)
    return f"; did you mean {commands[nearest[0]]!r}?" if nearest else ""


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says nothing of Ctrl-C: it was meant, and the interpreter ends by SIGINT, as shells expect."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def _run(module: str, arguments: list[str]) -> int:
    with sparing_imports():
        run = importlib.import_module(module).main
    code: int = run(arguments)
    return code


def _run_server_side(command: str, module: str, arguments: list[str]) -> int:
    set_library_environment()
    try:
        with sparing_imports():
            run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        needed = "pip install 'holdfast[server,embedded]'"
        print(f"holdfast {command} needs {error.name}: {needed}", file=sys.stderr)
        return 2
    code: int = run(arguments)
    return code
