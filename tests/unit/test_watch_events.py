"""What processes tell each other about watched sessions, as bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.rows import TOKEN_DTYPES
from service.engine.watch_events import (
    Change,
    Event,
    Lease,
    decode_lease,
    decode_news,
    encode_change,
    encode_event,
    encode_lease,
)

NUMBERS = st.integers(0, 2**53 - 1)
KEYS = st.binary(min_size=1, max_size=600)


@st.composite
def events(draw):
    kind = draw(st.sampled_from(sorted(TOKEN_DTYPES)))
    count, width = draw(st.integers(1, 5)), draw(st.integers(1, 3)) if kind == "features" else 1
    return Event(
        draw(KEYS), draw(NUMBERS), draw(NUMBERS), draw(NUMBERS), draw(st.integers(1, 9)),
        kind, count, width,
        np.arange(count * width, dtype=TOKEN_DTYPES[kind]).tobytes(),
        draw(st.binary(max_size=40)), draw(st.none() | st.binary(max_size=40)), draw(st.booleans()),
        draw(st.floats(0, 2e9)), draw(st.text(max_size=20)),
    )  # fmt: skip


@given(events())
def test_an_event_is_read_as_it_was_written(event):
    assert decode_news(encode_event(event)) == event


@given(KEYS)
def test_a_change_is_read_as_it_was_written(key):
    assert decode_news(encode_change(key)) == Change(key)


@given(KEYS, st.integers(0, 60_000), st.dictionaries(KEYS, st.booleans(), max_size=4))
def test_a_lease_is_read_as_it_was_written(channel, duration_ms, wants_state):
    lease = Lease(channel, duration_ms / 1000, wants_state)
    assert decode_lease(encode_lease(lease)) == lease


@given(events(), st.data())
def test_what_is_cut_off_is_no_message(event, data):
    for encoded, decode in (
        (encode_event(event), decode_news),
        (encode_lease(Lease(b"channel", 6.0, {event.key: True})), decode_lease),
    ):
        size = data.draw(st.integers(0, len(encoded) - 1))
        with pytest.raises(ValueError, match=r"ends|begins|tokens"):
            decode(encoded[:size])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_message(data):
    for decode in (decode_news, decode_lease):
        with pytest.raises(ValueError, match=r"ends|begins"):
            decode(b"XYZ" + data)
