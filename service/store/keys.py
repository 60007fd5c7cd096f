"""The names of things in the store, in one place: all begin with PREFIX:v1:.

Everywhere but in the store itself, the key of a session is the one that it has under the default prefix.
"""

import re
from collections.abc import Iterable, Sequence

DEFAULT_PREFIX = "holdfast"

_PREFIX = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEFAULT_HEAD = f"{DEFAULT_PREFIX}:v1:"
_GLOB = re.compile(r"[*?\[\]\\]")
_ESCAPED = r"\\\g<0>"


class KeySpace:
    """The keys of one deployment.

    Args:
        prefix: 1..64 of a-z, 0-9, '.', '_' and '-', a letter or digit first. A colon could let one prefix
            reach into another's keys, braces would move the hash tag, and stars are for patterns.

    Attributes:
        is_default: Keys lie where their names say.
        pattern: Of all its keys, as ACL rules and KEYS have it.
        ack_marker: Written before each wait for replicas or the disk; see `confirmation`. Its value means
            nothing.

    Raises:
        ValueError: The prefix is something else.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError("expected 1..64 of a-z, 0-9, '.', '_' and '-', a letter or digit first")
        head = f"{prefix}:v1:"
        self.pattern = f"{head}*"
        self.ack_marker = f"{head}wait".encode()
        self.is_default = head == _DEFAULT_HEAD
        self._head = head.encode()

    def ack_marker_of(self, number: int) -> bytes:
        """Returns such a marker for a cluster, where each node needs one in a slot of its own."""
        return self.ack_marker + f":{number}".encode()

    def channel(self, database: int, name: str) -> bytes:
        """Returns the name of a channel; unlike keys, the databases of a server share their channels."""
        return self._head + f"{database}:{name}".encode()

    def placed(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Returns where sessions with these keys lie in this key space; their slots are the same."""
        if self.is_default:
            return keys
        return [self._head + key[len(_DEFAULT_HEAD) :] for key in keys]

    def original(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Returns the keys of sessions that lie there; the inverse of `placed`."""
        if self.is_default:
            return keys
        return [_DEFAULT_HEAD.encode() + key[len(self._head) :] for key in keys]


def session_key(tenant: str, session_id: str) -> bytes:
    """Returns the key of a session's record.

    The braces are a hash tag: all keys of one session lie in one slot of a Redis Cluster.
    """
    return f"{_DEFAULT_HEAD}{{{tenant}:{session_id}}}".encode()


def session_keys(tenant: str, session_ids: Iterable[str]) -> list[bytes]:
    """Returns `session_key` of many sessions of one tenant, at least one; no id has a line feed in it."""
    start = f"{_DEFAULT_HEAD}{{{tenant}:"
    lines = f"}}\n{start}".join(
        session_ids
    )  # one string is built, encoded and cut, instead of one for each
    return f"{start}{lines}}}".encode().split(b"\n")


def session_pattern(tenant: str, prefix: str) -> bytes:
    """Returns the pattern, as SCAN has it, of the keys of a tenant's sessions whose ids begin so.

    What lies beside a record ends behind the brace.
    """
    return session_key(tenant, f"{_GLOB.sub(_ESCAPED, prefix)}*")


def session_id_of(key: bytes) -> str:
    """Returns the id of the session that has this key."""
    return key.partition(b"{")[2].partition(b":")[2][:-1].decode()


def tenant_of(key: bytes) -> bytes:
    """Returns the tenant whose session has this key."""
    return key.partition(b"{")[2].partition(b":")[0]


def set_aside_key(key: bytes) -> bytes:
    """Returns where the record of a session is kept for inspection once its id is free again."""
    return key + b":set-aside"


def sibling_key(key: bytes) -> bytes:
    """Returns where the cursor and the checkpoints of a session lie, beside its record.

    The scripts make this name by themselves, of the keys that they are given.
    """
    return key + b":beside"
