"""What lies beside a record, in the hash that `keys.sibling_key` names: a cursor. Pure."""

MAX_CURSOR_BYTES = 256
"""A cursor is the caller's, and opaque: the place in a file or a topic is shorter."""
