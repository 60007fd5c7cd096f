"""What the cache keeps, counts and forgets, whether sessions come together or one by one."""

import hashlib
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.engine.cache import ENTRY_BYTES, Cache
from service.engine.rows import Rows
from service.store.record import KeptReply, Record, encode_replies
from service.store.record_rows import RecordRows

STATE_BYTES = 8
MODELS = [
    SimpleNamespace(
        fingerprint=hashlib.sha256(name).digest(), contract=SimpleNamespace(state_bytes=STATE_BYTES)
    )
    for name in (b"one", b"two")
]


def record_of(number, outputs):
    replies = tuple(KeptReply(number, 1, 5, 6, output) for output in outputs)
    state = number.to_bytes(STATE_BYTES, "little")
    return Record(7, number, b"f" * 32, state, replies, digest=number + 1, nonce=-number)


def put_together(cache, keys, model, records, verified_s):
    """Puts records, all with tails of one length, as a load does."""
    stamps = np.array([[one.incarnation, one.position, one.digest] for one in records])
    nonces = np.array([one.nonce for one in records])
    states, tails = (
        np.frombuffer(b"".join(parts), np.uint8).reshape(len(records), -1)
        for parts in (
            [one.state for one in records],
            [encode_replies(one.replies) for one in records],
        )
    )
    rows = RecordRows(stamps, nonces, records[0].fingerprint, states, tails)
    cache.put_rows(keys, model, rows, verified_s=verified_s)


def commit(cache, keys, records, tails):
    """Lets sessions of one model take a step, after which they stand at these records."""
    rows = Rows(None, list(keys), *[None] * 3)
    cache.look_up(rows, np.array([cache.slots[key] for key in keys]))
    rows.next_stamps = np.array([[one.incarnation, one.position, one.digest] for one in records])
    rows.next_states = np.array([np.frombuffer(one.state, np.uint8) for one in records])
    rows.tails = tails
    cache.keep(rows, 2.0)


def assert_holds(cache, expected):
    """Compares what is kept with records and tails (None: no tail) by key."""
    assert cache.slots.keys() == expected.keys()
    held_bytes = 0
    for key, (model, record, tail) in expected.items():
        slot = cache.slots[key]
        rows = Rows(None, [key], *[None] * 3)
        cache.look_up(rows, np.array([slot]))
        cache.gather(rows)
        assert cache.model_at(slot) is model
        assert rows.stamps.tolist() == [[record.incarnation, record.position, record.digest]]
        assert rows.nonces.tolist() == [record.nonce]
        assert rows.states.tobytes() == record.state
        assert cache.knows_all(slot, 0.0) == (tail is not None)
        assert cache.has_tails(np.array([slot]), 0.0).tolist() == [tail is not None]
        if tail is not None:
            assert cache.tail(slot) == tail
        held_bytes += ENTRY_BYTES + len(key) + STATE_BYTES + (0 if tail is None else 1 + len(tail))
    assert cache.held_bytes == held_bytes


keys = st.lists(
    st.integers(0, 40).map(lambda number: b"k" * (1 + number // 20) + b"%d" % number), unique=True
)
operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "put_rows", "commit", "commit with tails", "discard"]),
        keys,
        st.integers(0, 1),
        st.integers(0, 1000),
        st.sampled_from([(), (b"",), (b"abcd",)]),
    ),
    max_size=20,
)


@given(operations)
def test_what_was_put_last_is_what_is_known(operations):
    cache, expected = Cache(1 << 20, ()), {}
    for name, keys, model_number, number, outputs in operations:
        model = MODELS[model_number]
        records = [record_of(number + place, outputs) for place in range(len(keys))]
        tails = [encode_replies(one.replies) for one in records]
        if name == "put":
            for key, one in zip(keys, records, strict=True):
                cache.put(key, model, one, verified_s=1.0)
        elif name == "put_rows" and keys:
            put_together(cache, keys, model, records, 1.0)
        elif name == "discard":
            for key in keys:
                cache.discard(key)
                expected.pop(key, None)
        if name in ("put", "put_rows"):
            stood = zip(records, tails, strict=True)
            expected |= {key: (model, *stands) for key, stands in zip(keys, stood, strict=True)}
        if name.startswith("commit"):
            hot = [key for key in keys if key in expected and expected[key][0] is model]
            if hot:
                records = [record_of(number, outputs)._replace(nonce=expected[key][1].nonce) for key in hot]
                tails = [b"t" * place for place in range(len(hot))] if name.endswith("tails") else None
                commit(cache, hot, records, tails)
                stood = zip(records, tails or [None] * len(hot), strict=True)
                expected |= {key: (model, *stands) for key, stands in zip(hot, stood, strict=True)}
        assert_holds(cache, expected)


def test_beyond_the_bound_those_used_longest_ago_are_forgotten_and_the_busy_stay():
    size = ENTRY_BYTES + 4 + STATE_BYTES + 1
    busy = {b"%04d" % number for number in range(0, 1000, 97)}
    cache = Cache(320 * size, busy)
    for start in range(0, 1000, 10):
        names = [b"%04d" % number for number in range(start, start + 10)]
        put_together(cache, names, MODELS[0], [record_of(start, ())] * 10, 1.0)
        assert cache.held_bytes <= 320 * size
        assert cache.held_bytes == size * len(cache.slots)
    assert busy <= cache.slots.keys()
    assert {b"%04d" % number for number in range(760, 1000)} <= cache.slots.keys()
    assert len(cache.slots) >= 290


def test_room_is_made_for_a_few_at_a_time():
    size = ENTRY_BYTES + 4 + STATE_BYTES + 1
    cache = Cache(2560 * size, ())
    names = [b"%04d" % number for number in range(6000)]
    counts = []
    for start in range(0, 6000, 10):
        put_together(cache, names[start : start + 10], MODELS[0], [record_of(start, ())] * 10, 1.0)
        counts.append(len(cache.slots))
    assert min(counts[256:]) >= 2550, "a 256th of the bound is freed at a time"
    assert max(counts) <= 2560
    assert set(names[-2550:]) <= cache.slots.keys(), "the latest stay"
    assert_holds(
        cache,
        {
            name: (MODELS[0], record_of(int(name) // 10 * 10, ()), b"")
            for name in names
            if name in cache.slots
        },
    )


def test_all_that_are_busy_stay_whatever_the_bound():
    names = [b"%04d" % number for number in range(200)]
    cache = Cache(10 * ENTRY_BYTES, set(names))
    put_together(cache, names, MODELS[0], [record_of(3, ())] * 200, 1.0)
    assert_holds(cache, {name: (MODELS[0], record_of(3, ()), b"") for name in names})


def test_large_sessions_take_the_place_of_many_small_ones():
    small, large = record_of(3, ()), record_of(4, (bytes(4096),))
    size = ENTRY_BYTES + 4 + STATE_BYTES + 1
    names = [b"%04d" % number for number in range(200)]
    cache = Cache(200 * size, ())
    put_together(cache, names, MODELS[0], [small] * 200, 1.0)
    for name in names[:100]:
        cache.discard(name)
    others = [b"l%03d" % number for number in range(12)]
    for name in others:
        cache.put(name, MODELS[0], large, verified_s=1.0)
        assert cache.held_bytes <= 200 * size
    tail = encode_replies(large.replies)
    kept = dict.fromkeys(others, (MODELS[0], large, tail))
    kept |= {name: (MODELS[0], small, b"") for name in names if name in cache.slots}
    assert_holds(cache, kept)
