"""`holdfast token`: makes a token for a client, and its entry for the tokens file of a server."""

import argparse
import sys

from service.rpc.credentials import DEFAULT_TENANT, SCOPES, CredentialsError, new_token, token_entry

EXIT_CONFIGURATION = 2


def main(arguments: list[str]) -> int:
    """Prints the token to standard error, where it is seen once, and the entry to standard output.

    So `holdfast token create --tenant acme >> tokens.toml` adds the entry, and no file has the token.

    Returns:
        0; 2 for a tenant or scope that is not allowed.
    """
    options = _parse(arguments)
    token = new_token()
    try:
        entry = token_entry(token, options.tenant, options.scopes)
    except CredentialsError as error:
        print(f"holdfast token create: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    print(f"for the client, shown only now: {token}", file=sys.stderr)
    print(f"\n{entry}", end="")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "holdfast token", description="Makes tokens for the clients of a server with --tokens-file."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    says = "prints a new token to standard error, and its entry for --tokens-file to standard output"
    create = commands.add_parser("create", help=says, description=f"{says.capitalize()}.")
    create.add_argument(
        "--tenant",
        default=DEFAULT_TENANT,
        help="tenant whose sessions the token may use (default: default)",
    )
    create.add_argument(
        "--scopes",
        nargs="+",
        default=["step"],
        help=f"scopes of the token: {', '.join(sorted(SCOPES))} (default: step)",
    )
    return parser.parse_args(arguments)
