"""What the subcommands of `holdfast session` do: each takes a client and options, and returns a code."""

import argparse
import secrets
import sys

from holdfast.cli.calling import EXIT_FAILURE, failed
from holdfast.cli.session_files import npz_of, read_blob, write_blob
from holdfast.cli.session_print import (
    CHECKPOINT_HEADER,
    LIST_HEADER,
    as_json,
    checkpoint_fields,
    checkpoint_line,
    list_line,
    session_fields,
    session_lines,
)
from holdfast.client.copy_requests import ListOptions
from holdfast.client.sync import Client
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb

DELETED_TOGETHER = 100
"""Sessions of one message, far fewer than a server takes."""


def list_sessions(client: Client, options: argparse.Namespace) -> int:
    """Prints the sessions that the options choose, as they are found."""
    seen: set[str] = set()
    for session in client.list_sessions(options.prefix, **_chosen(options)):
        if session.session_id in seen:
            continue
        if not seen and not options.json:
            print(LIST_HEADER)
        seen.add(session.session_id)
        print(as_json(session_fields(session)) if options.json else list_line(session))
        if len(seen) == options.limit:
            break
    return 0


def show(client: Client, options: argparse.Namespace) -> int:
    """Prints what is stored of a session."""
    _print_session(client.get_session(options.session_id), options)
    return 0


def fork(client: Client, options: argparse.Namespace) -> int:
    """Copies a session; prints the copies that were made."""
    new_ids = options.new_ids or [secrets.token_hex(16) for _ in range(options.count)]
    copies = client.fork_batch(options.session_id, new_ids, position=options.position)
    for row, new_id in enumerate(copies.session_ids):
        if row in copies.errors:
            _row_failed("fork", new_id, copies.errors[row])
            continue
        fields = {
            "session_id": new_id,
            "incarnation": int(copies.incarnations[row]),
            "position": int(copies.positions[row]),
        }
        print(as_json(fields) if options.json else f"{new_id} begins at position {fields['position']}")
    return EXIT_FAILURE if copies.errors else 0


def checkpoint(client: Client, options: argparse.Namespace) -> int:
    """Keeps a session under a name, or deletes what was kept."""
    session_id, name = options.session_id, options.name
    if options.delete:
        client.delete_checkpoint(session_id, name)
        fields = {"session_id": session_id, "name": name}
        print(as_json(fields) if options.json else f"checkpoint {name} of {session_id} was deleted")
        return 0
    saved = client.save_checkpoint(session_id, name, position=options.position)
    said = f"{session_id} is kept as {name} at position {saved.position}"
    print(as_json(checkpoint_fields(saved)) if options.json else said)
    return 0


def checkpoints(client: Client, options: argparse.Namespace) -> int:
    """Prints the checkpoints of a session, the oldest first."""
    found = client.checkpoints(options.session_id)
    if options.json:
        for one in found:
            print(as_json(checkpoint_fields(one)))
    elif found:
        print(CHECKPOINT_HEADER)
        for one in found:
            print(checkpoint_line(one))
    return 0


def restore(client: Client, options: argparse.Namespace) -> int:
    """Puts a session back to a checkpoint."""
    _print_session(client.restore_checkpoint(options.session_id, options.name), options)
    return 0


def export(client: Client, options: argparse.Namespace) -> int:
    """Writes a session to a file, or its state."""
    if options.npz is not None:
        write_blob(options.npz, npz_of(client.get_state(options.session_id)))
    else:
        write_blob(options.file, client.export_session(options.session_id, position=options.position))
    return 0


def import_(client: Client, options: argparse.Namespace) -> int:
    """Makes a session of a file."""
    blob = read_blob(options.file)
    with (
        client.import_session(blob, options.session_id)
        if options.session_id is not None
        else client.import_session(blob)
    ) as session:
        imported = client.get_session(session.session_id)
    _print_session(imported, options)
    return 0


def delete(client: Client, options: argparse.Namespace) -> int:
    """Deletes the sessions that are named, or those that the options choose."""
    if options.prefix is not None:
        return _delete_found(client, options)
    if len(options.session_ids) > 1:
        return _delete_many(client, options.session_ids, None, options)
    [session_id] = options.session_ids
    position = client.delete_session(session_id, incarnation=options.incarnation)
    _print_deleted(session_id, position, options)
    return 0


def release(client: Client, options: argparse.Namespace) -> int:
    """Lets a session go on that is in quarantine."""
    released = client.release_session(options.session_id, discard=options.discard)
    if options.json:
        fields = {"reason": released.reason or None, "position": released.position}
        print(as_json({"session_id": options.session_id, **fields}))
    elif not released.reason:
        print(f"{options.session_id} was not in quarantine; its position is {released.position}")
    else:
        end = "its record is set aside, the id is free" if options.discard else "it continues from there"
        said = f"{options.session_id} was in quarantine at position {released.position}: {released.reason}"
        print(f"{said}; {end}")
    return 0


def _chosen(options: argparse.Namespace) -> ListOptions:
    return {"model": options.model, "version": options.version, "min_idle_s": options.min_idle}


def _delete_found(client: Client, options: argparse.Namespace) -> int:
    """Deletes what a list finds, if whoever asks says yes; what was opened again since stays."""
    found = {
        one.session_id: one.incarnation for one in client.list_sessions(options.prefix, **_chosen(options))
    }
    if not found:
        return _summary(0, 0, options)
    if not options.yes and not _is_sure(f"delete {len(found)} sessions at {options.target}? [y/N] "):
        return failed("session delete", "nothing was deleted; --yes deletes without asking")
    return _delete_many(client, list(found), list(found.values()), options)


def _is_sure(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete_many(
    client: Client, ids: list[str], incarnations: list[int] | None, options: argparse.Namespace
) -> int:
    """Deletes sessions, some at a time; prints those that were not deleted, and how many were."""
    failures = 0
    for start in range(0, len(ids), DELETED_TOGETHER):
        part = slice(start, start + DELETED_TOGETHER)
        deleted = client.delete_batch(ids[part], None if incarnations is None else incarnations[part])
        failures += len(deleted.errors)
        for row, error in deleted.errors.items():
            _row_failed("delete", deleted.session_ids[row], error)
        if options.prefix is None:
            for row, session_id in enumerate(deleted.session_ids):
                if row not in deleted.errors:
                    _print_deleted(session_id, int(deleted.positions[row]), options)
    if options.prefix is None:
        return EXIT_FAILURE if failures else 0
    return _summary(len(ids) - failures, failures, options)


def _summary(deleted: int, failures: int, options: argparse.Namespace) -> int:
    said = f"{deleted} sessions were deleted" + (f", {failures} were not" if failures else "")
    print(as_json({"deleted": deleted, "failed": failures}) if options.json else said)
    return EXIT_FAILURE if failures else 0


def _print_session(session: pb.Session, options: argparse.Namespace) -> None:
    print(as_json(session_fields(session)) if options.json else "\n".join(session_lines(session)))


def _print_deleted(session_id: str, position: int, options: argparse.Namespace) -> None:
    fields = {"session_id": session_id, "position": position}
    print(as_json(fields) if options.json else f"{session_id} was deleted at position {position}")


def _row_failed(command: str, session_id: str, error: HoldfastError) -> None:
    failed(f"session {command}", f"{session_id}: {error.reason or error.code}: {error}")
