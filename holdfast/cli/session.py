"""`holdfast session`: lists, shows, copies, saves, exports, imports, deletes and releases sessions."""

import argparse
import math
from typing import Any

from holdfast.cli import session_actions as actions
from holdfast.cli.calling import add_server_options, ask_server


def main(arguments: list[str]) -> int:
    """Runs one of the subcommands.

    Returns:
        0, or 1 if the server refused something; argparse exits with 2 for wrong arguments.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if wrong := _wrong(options):
        options.parser.error(wrong)
    return ask_server(f"session {options.command}", options, lambda client: options.run(client, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast session",
        description="Lists, shows, copies, saves, restores, exports, imports, deletes, releases sessions.",
        epilog="Each command has --help, and --json for programs.",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    adders = (
        *(_add_list, _add_show, _add_fork, _add_checkpoint, _add_checkpoints, _add_restore),
        *(_add_export, _add_import, _add_delete, _add_release),
    )
    for add in adders:
        command = add(commands)
        command.set_defaults(parser=command)
        command.add_argument("--json", action="store_true", help="print JSON, one object a line")
        add_server_options(command)
    return parser


def _add_list(commands: Any) -> argparse.ArgumentParser:
    command = _named(commands, "list", actions.list_sessions, "prints the sessions that there are")
    command.add_argument("--prefix", default="", metavar="TEXT", help="only ids that begin with this")
    _add_filters(command)
    command.add_argument(
        "--limit", type=_count, metavar="N", help="print at most N sessions (default: all)"
    )
    return command


def _add_show(commands: Any) -> argparse.ArgumentParser:
    return _add(commands, "show", actions.show, "prints what is stored of a session")


def _add_fork(commands: Any) -> argparse.ArgumentParser:
    command = _add(commands, "fork", actions.fork, "copies a session, as it was last committed, to new ids")
    command.add_argument(
        "new_ids", nargs="*", metavar="NEW_ID", help="id of a copy (default: one that nobody can guess)"
    )
    command.add_argument(
        "--count",
        type=_count,
        default=1,
        metavar="N",
        help="number of copies, if no NEW_ID is given (default: 1)",
    )
    _add_position(command)
    return command


def _add_checkpoint(commands: Any) -> argparse.ArgumentParser:
    says = "saves a session, as it was last committed, as a checkpoint; or deletes a checkpoint"
    command = _add(commands, "checkpoint", actions.checkpoint, says)
    command.add_argument(
        "name", metavar="NAME", help="name of the checkpoint; replaces one of the same name"
    )
    command.add_argument("--delete", action="store_true", help="delete the checkpoint instead")
    _add_position(command)
    return command


def _add_checkpoints(commands: Any) -> argparse.ArgumentParser:
    return _add(commands, "checkpoints", actions.checkpoints, "prints the checkpoints of a session")


def _add_restore(commands: Any) -> argparse.ArgumentParser:
    says = "restores a session from a checkpoint; its other writers get SESSION_DELETED"
    command = _add(commands, "restore", actions.restore, says)
    command.add_argument("name", metavar="NAME", help="name of the checkpoint, which stays")
    return command


def _add_export(commands: Any) -> argparse.ArgumentParser:
    command = _add(commands, "export", actions.export, "writes a session, or only its state, to a file")
    command.add_argument("file", nargs="?", metavar="FILE", help="file to write; - is standard output")
    command.add_argument(
        "--npz",
        metavar="FILE",
        help="write only the state, by name, to FILE, for numpy.load; - is standard output",
    )
    _add_position(command)
    return command


def _add_import(commands: Any) -> argparse.ArgumentParser:
    command = _named(commands, "import", actions.import_, "makes a session from an exported file")
    command.add_argument("file", metavar="FILE", help="file that `export` wrote; - is standard input")
    command.add_argument(
        "session_id", nargs="?", metavar="ID", help="id of the session (default: one that nobody can guess)"
    )
    return command


def _add_delete(commands: Any) -> argparse.ArgumentParser:
    command = _named(commands, "delete", actions.delete, "deletes sessions, their states and checkpoints")
    command.add_argument("session_ids", nargs="*", metavar="ID", help="id of a session")
    command.add_argument(
        "--incarnation",
        type=int,
        default=0,
        metavar="N",
        help="delete only this incarnation of the one session, as `show` prints it (default: any)",
    )
    command.add_argument(
        "--prefix", metavar="TEXT", help="delete the sessions whose ids begin with this, after a question"
    )
    _add_filters(command)
    command.add_argument("--yes", action="store_true", help="with --prefix: do not ask")
    return command


def _add_release(commands: Any) -> argparse.ArgumentParser:
    command = _add(commands, "release", actions.release, "releases a session from quarantine")
    command.add_argument(
        "--discard",
        action="store_true",
        help="free the id instead; the record, damaged or in quarantine, is set aside for 30 days",
    )
    return command


def _add(commands: Any, name: str, run: Any, says: str) -> argparse.ArgumentParser:
    """Adds a command about one session."""
    command = _named(commands, name, run, says)
    command.add_argument("session_id", metavar="ID", help="id of the session")
    return command


def _named(commands: Any, name: str, run: Any, says: str) -> argparse.ArgumentParser:
    """Adds a command; its own --help says what it does as well."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=says, description=f"{says[0].upper()}{says[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="", metavar="NAME", help="only sessions on this model")
    command.add_argument(
        "--version", type=_count, default=0, metavar="N", help="version of --model (default: any)"
    )
    command.add_argument(
        "--min-idle",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="only sessions without a commit for this long",
    )


def _add_position(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--position", type=int, metavar="N", help="only if the session has consumed N tokens (default: any)"
    )


def _wrong(options: argparse.Namespace) -> str:
    """Returns what is wrong with options that do not go together; "" if nothing is."""
    if options.command == "export" and (options.file is None) == (options.npz is None):
        return "export needs either FILE or --npz FILE"
    if options.command == "export" and options.npz and options.position is not None:
        return "--position needs FILE; --npz takes the state as it is"
    if options.command == "checkpoint" and options.delete and options.position is not None:
        return "--position is for saving a checkpoint, not for --delete"
    if options.command in ("list", "delete") and options.version and not options.model:
        return "--version needs --model"
    if options.command != "delete":
        return ""
    if bool(options.session_ids) == (options.prefix is not None):
        return "delete needs either IDs or --prefix"
    if options.incarnation and len(options.session_ids) != 1:
        return "--incarnation needs exactly one ID"
    if options.prefix == "" and options.yes and not (options.model or options.min_idle):
        return "an empty --prefix means every session: leave out --yes, and answer the question"
    if options.prefix is None and (options.model or options.version or options.min_idle or options.yes):
        return "--model, --version, --min-idle and --yes need --prefix"
    return ""


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, expected 3600 for an hour")
    return number
