import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from holdfast.errors import RecordCorrupt
from service.store.flag import has_sibling, without_flag
from service.store.record import (
    STAMP_END,
    STAMP_START,
    KeptReply,
    Record,
    Tail,
    decode,
    decode_replies,
    encode,
    encode_replies,
    encode_with,
    replies_after,
)
from service.store.record_rows import decode_rows, encode_rows

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


kept = st.builds(
    KeptReply, int53, st.integers(1, 9), int53, int53, st.sampled_from([b"", b"abcd", bytes(40)])
)
similar = st.builds(
    Record,
    incarnation=st.sampled_from([1, 2**53 - 1, 7, 7, 7, 0, 2**53, -1]),
    position=st.sampled_from([0, 2**53 - 1, 9, 9, 9, 2**53]),
    fingerprint=st.sampled_from([b"f" * 32, b"f" * 32, b"g" * 32]),
    state=st.sampled_from([bytes(8), b"12345678", bytes(40)]),
    replies=st.lists(kept, max_size=2).map(tuple),
    deleted=st.sampled_from([False, False, True]),
    digest=st.sampled_from([0, 2**53 - 1, 5, 5, 5, 2**53, -1]),
    nonce=st.integers(1 - 2**53, 2**53 - 1),
)
similar |= st.builds(lambda record: record._replace(deleted=False, quarantine_reason="held"), similar)


def flipped(encoded, bit):
    """Returns the bytes with one bit flipped; as they are if it lies beyond them."""
    changed = bytearray(encoded)
    if bit < 8 * len(changed):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def sealed(encoded):
    """Returns the bytes with the checksum that belongs to them."""
    count = int.from_bytes(encoded[4:8], "little")
    return encoded[:8] + xxh3_64_intdigest(encoded[16:], count).to_bytes(8, "little") + encoded[16:]


encodings = similar.map(encode)
encodings |= st.builds(flipped, encodings, st.integers(0, 2000))
encodings |= st.builds(lambda encoded, bit: sealed(flipped(encoded, bit)), encodings, st.integers(0, 2000))
encodings |= st.builds(
    lambda encoded, size: encoded[:size], encodings, st.sampled_from([0, 10, 88, 90, 130])
)


def live(data):
    """Returns a record that is whole and neither deleted nor held, else None."""
    try:
        record = decode(data)
    except RecordCorrupt:
        return None
    return None if record.deleted or record.quarantine_reason else record


def layout(record):
    return record.fingerprint, len(record.state), [len(reply.outputs) for reply in record.replies]


@given(st.lists(encodings, min_size=1, max_size=20))
def test_records_that_are_alike_are_decoded_together_as_they_are_alone(drawn):
    sizes = list(map(len, drawn))
    size = max(sizes, key=sizes.count)
    same = [encoded for encoded in drawn if len(encoded) == size]
    alone = [live(encoded) for encoded in same]
    together = decode_rows(same)
    first = alone[0]
    if first is None or len(first.replies) > 1:
        assert together is None
        return
    expected = [
        place for place, one in enumerate(alone) if one is not None and layout(one) == layout(first)
    ]
    rows, places = together
    assert places.tolist() == expected
    for row, place in enumerate(expected):
        one = alone[place]
        assert rows.stamps[row].tolist() == [one.incarnation, one.position, one.digest]
        assert rows.nonces[row] == one.nonce
        assert rows.fingerprint == one.fingerprint
        assert rows.states[row].tobytes() == one.state
        assert rows.tails[row].tobytes() == encode_replies(one.replies)


@given(records, st.data())
def test_replies_are_dropped_as_they_lie(record, data):
    replies = tuple(sorted(record.replies, key=lambda reply: reply.position))
    position = data.draw(st.sampled_from([0, *(reply.position for reply in replies)]))
    kept = tuple(reply for reply in replies if reply.position > position)
    assert replies_after(encode_replies(replies), position) == Tail(len(kept), encode_replies(kept))
    assert encode_with(record, Tail(len(kept), encode_replies(kept))) == encode(
        record._replace(replies=kept)
    )


@pytest.mark.parametrize("end", [-1, -6, -30])  # inside the reply, and twice inside its header
def test_replies_that_end_too_early_are_not_dropped_from(end):
    data = encode_replies((KeptReply(9, 1, 5, 6, b"abcd"),))
    with pytest.raises(RecordCorrupt):
        replies_after(data[:end], 0)


def test_a_record_whose_reply_says_another_length_is_not_decoded_with_others():
    right = encode(Record(7, 9, b"f" * 32, bytes(8), (KeptReply(9, 1, 5, 6, b"abcd"),)))
    wrong = bytearray(right)
    wrong[88 + 8 + 12] += 1
    _, places = decode_rows([right, sealed(bytes(wrong)), right])
    assert places.tolist() == [0, 2]
    assert decode_rows([sealed(bytes(wrong)), right]) is None


@given(records)
def test_the_stamp_lies_where_the_script_cuts_it_out(record):
    assert encode(record)[STAMP_START:STAMP_END] == record.stamp


@given(records, st.data())
def test_any_flipped_bit_is_noticed(record, data):
    encoded = bytearray(encode(record))
    bit = data.draw(
        st.integers(0, 8 * len(encoded) - 1).filter(lambda bit: bit != 8 * 39)
    )  # the store's flag
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordCorrupt):
        decode(bytes(encoded))


@given(records)
def test_the_stores_flag_is_no_part_of_a_record(record):
    encoded = encode(record)
    stored = encoded[:39] + b"\1" + encoded[40:]
    assert decode(stored) == record
    with pytest.raises(RecordCorrupt):
        decode(encoded[:39] + b"\2" + encoded[40:])
    assert has_sibling(stored)
    assert not has_sibling(encoded)
    assert without_flag(stored) == without_flag(encoded) == encoded


def test_records_with_a_flag_are_decoded_with_those_that_have_none():
    encoded = encode(Record(7, 9, b"f" * 32, bytes(8), (KeptReply(9, 1, 5, 6, b"abcd"),)))
    stored = encoded[:39] + b"\1" + encoded[40:]
    wrong = encoded[:39] + b"\2" + encoded[40:]
    for same in ([stored, encoded, wrong, stored], [encoded, stored, wrong, encoded]):
        rows, places = decode_rows(same)
        assert places.tolist() == [0, 1, 3]
        assert rows.tails.shape == (3, 36)
    assert decode_rows([wrong, encoded]) is None


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
