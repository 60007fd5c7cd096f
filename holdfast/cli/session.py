"""`holdfast session`: shows a session, deletes one, and releases one from quarantine."""

import argparse

from holdfast.cli.calling import add_server_options, ask_server
from holdfast.client.sync import Client


def main(arguments: list[str]) -> int:
    """Runs one of the subcommands.

    Returns:
        0, or 1 if the server refused; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    return ask_server(f"session {options.command}", options, lambda client: options.run(client, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast session", description="Shows, deletes or releases a session."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    show = commands.add_parser("show", help="prints what is stored of a session")
    show.set_defaults(run=_show)
    delete = commands.add_parser("delete", help="deletes a session and its state")
    delete.set_defaults(run=_delete)
    delete.add_argument(
        "--incarnation",
        type=int,
        default=0,
        metavar="N",
        help="delete only this incarnation, as `show` prints it (default: any)",
    )
    release = commands.add_parser("release", help="releases a session from quarantine")
    release.set_defaults(run=_release)
    release.add_argument(
        "--discard",
        action="store_true",
        help="free the id instead; the record, damaged or in quarantine, is set aside for 30 days",
    )
    for command in (show, delete, release):
        command.add_argument("session_id", metavar="ID", help="id of the session")
        add_server_options(command)
    return parser


def _show(client: Client, options: argparse.Namespace) -> int:
    session = client.get_session(options.session_id)
    expires = f"in {session.expires_in_s:.0f} s" if session.expires_in_s else "never"
    rows = {
        "session": session.session_id,
        "incarnation": session.incarnation,
        "position": session.position,
        "model": f"{session.model.name} version {session.model.version}",
        "fingerprint": session.fingerprint,
        "expires": expires,
        "quarantine": session.quarantine_reason or "no",
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    return 0


def _delete(client: Client, options: argparse.Namespace) -> int:
    position = client.delete_session(options.session_id, incarnation=options.incarnation)
    print(f"{options.session_id} was deleted at position {position}")
    return 0


def _release(client: Client, options: argparse.Namespace) -> int:
    released = client.release_session(options.session_id, discard=options.discard)
    if not released.reason:
        print(f"{options.session_id} was not in quarantine; its position is {released.position}")
        return 0
    end = "its record is set aside, the id is free" if options.discard else "it continues from there"
    print(
        f"{options.session_id} was in quarantine at position {released.position}: {released.reason}; {end}"
    )
    return 0
