"""The names of things in the store, in one place."""

from collections.abc import Iterable

ACK_MARKER = b"holdfast:v1:wait"
"""Written before each wait for replicas or the disk; see `confirmation`. Its value means nothing."""

KEY_PATTERN = "holdfast:v1:*"
"""Of all keys, as ACL rules and KEYS have it."""


def ack_marker(number: int) -> bytes:
    """Returns such a marker for a cluster, where each node needs one in a slot of its own."""
    return ACK_MARKER + f":{number}".encode()


def session_key(tenant: str, session_id: str) -> bytes:
    """Returns the key of a session's record.

    The braces are a hash tag: all keys of one session lie in one slot of a Redis Cluster.
    """
    return f"holdfast:v1:{{{tenant}:{session_id}}}".encode()


def session_keys(tenant: str, session_ids: Iterable[str]) -> list[bytes]:
    """Returns `session_key` of many sessions of one tenant."""
    start = f"holdfast:v1:{{{tenant}:"
    return [f"{start}{session_id}}}".encode() for session_id in session_ids]


def tenant_of(key: bytes) -> bytes:
    """Returns the tenant whose session has this key."""
    return key.partition(b"{")[2].partition(b":")[0]


def set_aside_key(key: bytes) -> bytes:
    """Returns where the record of a session is kept for inspection once its id is free again."""
    return key + b":set-aside"
