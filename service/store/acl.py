"""The rules that give the store's user what it needs and nothing else. Pure.

A user with them can read and write sessions, by their key pattern, use channels, by the same pattern, list
the names of keys, and look at the server; it cannot change settings, flush or read anything else.
"""

import hashlib

from service.store.keys import DEFAULT_PREFIX, KeySpace
from service.store.sentinel import NEWS

COMMANDS = (
    "ping", "select", "info", "role", "wait",
    "mget", "get", "getrange", "set", "pttl", "eval", "evalsha",
    "type", "rename", "pexpire",
    "scan", "object|idletime",
    "setrange", "persist", "unlink", "hget", "hset", "hdel", "hlen", "hkeys", "hexists", "exists", "time",
    "asking", "cluster|slots",
    "publish", "subscribe",
)  # fmt: skip
"""What is called, by the scripts too."""

FSYNC_COMMANDS = ("waitaof", "config|get", "client|no-touch")
"""For acknowledgement level `fsynced`, and for the idle time of sessions that never expire; a server that
does not know them refuses a rule that names them."""

SENTINEL_COMMANDS = ("ping", "subscribe", "sentinel|get-master-addr-by-name", "sentinel|master")


def store_rule(
    user: str, *, password: str | None = None, fsynced: bool = False, key_prefix: str = DEFAULT_PREFIX
) -> str:
    """Returns the ACL SETUSER command for the user of the store.

    Args:
        user: Its name.
        password: Of which the rule has the sha256; without one nobody can log in until one is added.
        fsynced: Allow what acknowledgement level `fsynced` needs.
        key_prefix: See `KeySpace`.

    Raises:
        ValueError: The prefix is not allowed.
    """
    pattern = KeySpace(key_prefix).pattern
    commands = COMMANDS + (FSYNC_COMMANDS if fsynced else ())
    return _rule(user, password, f"resetkeys ~{pattern} resetchannels &{pattern}", commands)


def sentinel_rule(user: str, *, password: str | None = None) -> str:
    """Returns the ACL SETUSER command for the user of the sentinels; arguments as above."""
    return _rule(user, password, f"resetkeys resetchannels &{NEWS}", SENTINEL_COMMANDS)


def _rule(user: str, password: str | None, limits: str, commands: tuple[str, ...]) -> str:
    secret = "" if password is None else f"#{hashlib.sha256(password.encode()).hexdigest()} "
    allowed = " ".join(f"+{command}" for command in commands)
    return f"ACL SETUSER {user} reset on {secret}{limits} -@all {allowed}"
