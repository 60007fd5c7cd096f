"""The names of things in the store, in one place."""

KEY_PATTERN = "holdfast:v1:*"
"""Of all keys, as ACL rules and KEYS have it."""


def session_key(tenant: str, session_id: str) -> bytes:
    """Returns the key of a session's record.

    The braces are a hash tag: all keys of one session lie in one slot of a Redis Cluster.
    """
    return f"holdfast:v1:{{{tenant}:{session_id}}}".encode()
