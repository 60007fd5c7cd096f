import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RecordCorrupt
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
    token_digest,
    token_digests,
)

int63 = st.integers(0, 2**63 - 1)
int62 = st.integers(0, 2**62 - 1)
replies = st.builds(
    KeptReply, int63, st.integers(1, 2**32 - 1), st.binary(min_size=16, max_size=16), st.binary(max_size=80)
)
records = st.builds(
    Record,
    incarnation=st.integers(1, 2**63 - 1),
    position=int62,
    fingerprint=st.binary(min_size=32, max_size=32),
    state=st.binary(max_size=200),
    replies=st.lists(replies, max_size=4).map(tuple),
    closed=st.booleans(),
    quarantine_reason=st.just(""),
)
held = st.builds(
    lambda record, reason: record._replace(closed=False, quarantine_reason=reason),
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
    stamps = rng.integers(1, 2**63 - 1, (rows, 2))
    fingerprint = rng.bytes(32)
    states = rng.integers(0, 256, (rows, state_bytes), np.uint8)
    digests = rng.integers(0, 256, (rows, 16), np.uint8)
    outputs = rng.integers(0, 256, (rows, output_bytes), np.uint8)
    encoded = encode_rows(stamps, fingerprint, states, token_count, digests, outputs)
    for row, (incarnation, position) in enumerate(stamps.tolist()):
        reply = KeptReply(position, token_count, digests[row].tobytes(), outputs[row].tobytes())
        alone = Record(incarnation, position, fingerprint, states[row].tobytes(), (reply,))
        assert encoded[row].tobytes() == encode(alone)


@given(st.integers(1, 9), st.integers(1, 40), st.randoms(use_true_random=False))
def test_digests_of_rows_are_those_of_single_chunks(rows, size, random):
    chunks = [random.randbytes(size) for _ in range(rows)]
    digests = token_digests(b"".join(chunks), rows)
    assert [digest.tobytes() for digest in digests] == [token_digest(chunk) for chunk in chunks]


@given(st.sets(st.binary(max_size=40), min_size=2, max_size=2))
def test_different_chunks_have_different_digests(chunks):
    assert len({token_digest(chunk) for chunk in chunks}) == 2


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


def test_a_tombstone_never_has_the_stamp_of_the_record_it_replaces():
    live = Record(7, 0, b"f" * 32)
    assert live._replace(closed=True).stamp != live.stamp


@given(held)
def test_quarantine_changes_the_stamp_and_its_end_restores_it(record):
    live = record._replace(quarantine_reason="")
    others = [live.stamp, live._replace(position=live.position + 1).stamp, live._replace(closed=True).stamp]
    assert record.stamp not in others
    assert decode(encode(record))._replace(quarantine_reason="") == live


@given(held)
def test_a_session_that_is_not_in_quarantine_pays_nothing_for_it(record):
    live = record._replace(quarantine_reason="")
    assert len(encode(record)) == len(encode(live)) + 4 + len(record.quarantine_reason.encode())


def test_overhead_with_one_reply_is_at_most_160_bytes():
    record = Record(7, 9, b"f" * 32, b"s" * 1024, (KeptReply(9, 1, b"d" * 16, b"o" * 40),))
    assert len(encode(record)) - 1024 - 40 <= 160
