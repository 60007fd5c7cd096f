"""`holdfast store`: prints the ACL rule of the store's user."""

import argparse
import sys
from pathlib import Path

from service.store.acl import sentinel_rule, store_rule
from service.store.address import password_in
from service.store.keys import DEFAULT_PREFIX, KeySpace


def main(arguments: list[str]) -> int:
    """Prints the rule, and on standard error what is left to do.

    Returns:
        0, or 2 if the password file cannot be read or the prefix is not allowed.
    """
    options = _parse(arguments)
    try:
        KeySpace(options.key_prefix)
    except ValueError as error:
        print(f"holdfast store acl: --key-prefix {options.key_prefix}: {error}", file=sys.stderr)
        return 2
    password = None
    if options.password_file is not None:
        try:
            password = password_in(options.password_file)
        except OSError as error:
            print(f"holdfast store acl: {error}", file=sys.stderr)
            return 2
    if options.sentinel:
        print(sentinel_rule(options.user, password=password))
    else:
        print(
            store_rule(
                options.user, password=password, fsynced=options.fsynced, key_prefix=options.key_prefix
            )
        )
    if password is None:
        print("nobody can log in yet: add >PASSWORD or #SHA256, or --password-file FILE", file=sys.stderr)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "holdfast store", description="Prepares a Redis or Valkey for Holdfast."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    acl = commands.add_parser(
        "acl",
        help="prints the ACL rule for Holdfast's user in the store",
        description="Prints the ACL SETUSER command that grants Holdfast's user in Redis or Valkey "
        "exactly what it needs. Run it on every server, replicas included, or put it into their ACL files.",
    )
    acl.add_argument("--user", default="holdfast", help="name of the user (default: %(default)s)")
    acl.add_argument(
        "--password-file", type=Path, help="file with the user's password; its SHA-256 is printed"
    )
    acl.add_argument(
        "--fsynced",
        action="store_true",
        help="also grant what acknowledgement level fsynced needs (Redis 7.4.3 or newer, Valkey 8 or "
        "newer with appendfsync always)",
    )
    acl.add_argument(
        "--key-prefix",
        default=DEFAULT_PREFIX,
        help="key prefix, as for holdfast serve (default: %(default)s)",
    )
    acl.add_argument(
        "--sentinel", action="store_true", help="print the rule for the user of the sentinels instead"
    )
    return parser.parse_args(arguments)
