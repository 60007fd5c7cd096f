import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import RecordCorrupt
from service.store.record import (
    STAMP_END,
    STAMP_START,
    KeptReply,
    Record,
    decode,
    decode_replies,
    encode,
    encode_replies,
    encode_rows,
)

int53 = st.integers(0, 2**53 - 1)
replies = st.builds(KeptReply, int53, st.integers(1, 2**32 - 1), int53, int53, st.binary(max_size=80))
records = st.builds(
    Record,
    incarnation=st.integers(1, 2**53 - 1),
    position=int53,
    fingerprint=st.binary(min_size=32, max_size=32),
    state=st.binary(max_size=200),
    replies=st.lists(replies, max_size=4).map(tuple),
    deleted=st.booleans(),
    quarantine_reason=st.just(""),
    digest=int53,
    nonce=st.integers(1 - 2**53, 2**53 - 1),
)
held = st.builds(
    lambda record, reason: record._replace(deleted=False, quarantine_reason=reason),
    records,
    st.text(min_size=1),
)
records |= held


@given(records)
def test_decode_is_the_inverse_of_encode(record):
    assert decode(encode(record)) == record


@given(records)
def test_replies_read_back_alone(record):
    assert decode_replies(encode_replies(record.replies)) == record.replies


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40), st.integers(1, 2**32 - 1))
def test_rows_are_what_single_records_are(rows, state_bytes, output_bytes, token_count):
    rng = np.random.default_rng(rows)
    stamps = rng.integers(1, 2**53 - 1, (rows, 3))
    nonces, before = rng.integers(-(2**52), 2**52, rows), rng.integers(1, 2**53 - 1, rows)
    fingerprint = rng.bytes(32)
    states = rng.integers(0, 256, (rows, state_bytes), np.uint8)
    outputs = rng.integers(0, 256, (rows, output_bytes), np.uint8)
    encoded = encode_rows(stamps, nonces, fingerprint, states, token_count, before, outputs)
    for row, (incarnation, position, digest) in enumerate(stamps.tolist()):
        reply = KeptReply(position, token_count, int(before[row]), digest, outputs[row].tobytes())
        state = states[row].tobytes()
        alone = Record(
            incarnation, position, fingerprint, state, (reply,), digest=digest, nonce=int(nonces[row])
        )
        assert encoded[row].tobytes() == encode(alone)


@given(records)
def test_the_stamp_lies_where_the_script_cuts_it_out(record):
    assert encode(record)[STAMP_START:STAMP_END] == record.stamp


@given(records, st.data())
def test_any_flipped_bit_is_noticed(record, data):
    encoded = bytearray(encode(record))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordCorrupt):
        decode(bytes(encoded))


@given(records, st.data())
def test_any_truncation_is_noticed(record, data):
    encoded = encode(record)
    with pytest.raises(RecordCorrupt):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize(
    "odd",
    [
        {"position": 2**53},
        {"position": 2**62 - 1},
        {"position": 2**53, "deleted": True},
        {"position": 2**53, "quarantine_reason": "held"},
        {"incarnation": 0},
        {"incarnation": 2**53},
        {"incarnation": -1},
        {"digest": 2**53},
        {"digest": -1},
    ],
)
def test_numbers_beyond_their_bounds_are_damage(odd):
    with pytest.raises(RecordCorrupt, match="beyond"):
        decode(encode(Record(7, 9, b"f" * 32)._replace(**odd)))


@pytest.mark.parametrize("mark", [{}, {"deleted": True}, {"quarantine_reason": "held"}])
@pytest.mark.parametrize("position", [0, 1, 2**53 - 1])
def test_positions_at_their_bounds_keep_their_marks(position, mark):
    record = Record(2**53 - 1, position, b"f" * 32, **mark)
    assert decode(encode(record)) == record


def test_two_histories_at_one_position_have_two_stamps():
    record = Record(7, 9, b"f" * 32, digest=11)
    assert record.stamp != record._replace(digest=12).stamp


def test_a_tombstone_never_has_the_stamp_of_the_record_it_replaces():
    live = Record(7, 0, b"f" * 32)
    assert live._replace(deleted=True).stamp != live.stamp


@given(held)
def test_quarantine_changes_the_stamp_and_its_end_restores_it(record):
    live = record._replace(quarantine_reason="")
    changes = ({}, {"position": live.position + 1}, {"deleted": True})
    others = [live._replace(**change).stamp for change in changes]
    assert record.stamp not in others
    assert decode(encode(record))._replace(quarantine_reason="") == live


@given(held)
def test_a_session_that_is_not_in_quarantine_pays_nothing_for_it(record):
    live = record._replace(quarantine_reason="")
    assert len(encode(record)) == len(encode(live)) + 4 + len(record.quarantine_reason.encode())


def test_overhead_with_one_reply_is_at_most_160_bytes():
    record = Record(7, 9, b"f" * 32, b"s" * 1024, (KeptReply(9, 1, 5, 6, b"o" * 40),))
    assert len(encode(record)) - 1024 - 40 <= 160
