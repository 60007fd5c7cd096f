"""The names of things in the store, in one place."""

ACK_MARKER = b"holdfast:v1:wait"
"""Written before each wait for replicas or the disk; see `confirmation`. Its value means nothing."""


def session_key(tenant: str, session_id: str) -> bytes:
    """Returns the key of a session's record.

    The braces are a hash tag: all keys of one session lie in one slot of a Redis Cluster.
    """
    return f"holdfast:v1:{{{tenant}:{session_id}}}".encode()


def set_aside_key(key: bytes) -> bytes:
    """Returns where the record of a session is kept for inspection once its id is free again."""
    return key + b":set-aside"
