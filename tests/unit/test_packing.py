"""What is packed by hand is what hiredis packs."""

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.store.cluster import pack_each
from service.store.one_node import pack_together
from service.store.protocol import Writes
from service.store.record import NO_STAMP
from service.store.topology import pack_arguments

STAMP_BYTES = len(NO_STAMP)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 300), st.booleans()), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.none() | st.binary(max_size=3), max_size=2),
)
def test_a_script_call_reads_as_hiredis_packs_it(parts, has_long_keys, cursors):
    rng = np.random.default_rng(0)
    writes, keys, arguments = [], [], []
    for number, (count, size, as_matrix) in enumerate(parts):
        names = [f"key-{number}-{row:03}{'x' * row * has_long_keys}".encode() for row in range(count)]
        expected = rng.bytes(STAMP_BYTES * count)
        matrix = rng.integers(0, 256, (count, size), np.uint8)
        given = [cursors[row % len(cursors)] for row in range(count)] if cursors and number != 1 else None
        records = matrix if as_matrix else [bytes(row) for row in matrix]
        writes.append(Writes(names, expected, records, given))
        keys += names
        for row in range(count):
            arguments += [expected[STAMP_BYTES * row :][:STAMP_BYTES], matrix[row].tobytes()]
            if cursors:
                cursor = given and given[row]
                arguments.append(b"" if cursor is None else b"=" + cursor)
    script = b"f" * 40
    [call] = pack_together(b"EVALSHA", script, writes, 86_400_000)
    plain = hiredis.pack_command(("EVALSHA", script, len(keys), *keys, 86_400_000, *arguments))
    assert (call.key, b"".join(call.request)) == (keys[0], plain)
    width = 3 if cursors else 2
    plain_each = [
        (key, (hiredis.pack_command(("EVALSHA", script, 1, key, 86_400_000, *arguments[start:][:width])),))
        for key, start in zip(keys, range(0, len(arguments), width), strict=True)
    ]
    assert pack_each(b"EVALSHA", script, writes, 86_400_000) == plain_each


@given(st.lists(st.binary(max_size=3) | st.binary(min_size=12, max_size=12), min_size=1, max_size=20))
def test_arguments_read_as_hiredis_packs_them(values):
    head = b"*%d\r\n" % len(values)
    assert head + pack_arguments(values) == hiredis.pack_command(tuple(values))
