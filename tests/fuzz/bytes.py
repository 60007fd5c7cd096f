"""Bytes that are almost right: what a parser is most likely to trip over."""

from hypothesis import strategies as st


def damaged(valid):
    """Returns a strategy of bytes from one of valid ones: as they are, or changed in a few places."""
    return st.builds(_damage, valid, st.lists(_CHANGES, max_size=4))


_CHANGES = st.tuples(
    st.sampled_from(["set", "insert", "delete", "cut", "repeat"]),
    st.integers(0, 2**16),
    st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\x00", b"\xff", b"\x80" * 9, b"\x7f"])),
)


def _damage(data, changes):
    data = bytearray(data)
    for kind, place, piece in changes:
        start = place % (len(data) + 1)
        if kind == "set":
            data[start : start + len(piece)] = piece
        elif kind == "insert":
            data[start:start] = piece
        elif kind == "delete":
            del data[start : start + len(piece)]
        elif kind == "cut":
            del data[start:]
        else:
            data[start:start] = data[start : start + 64]
    return bytes(data)
