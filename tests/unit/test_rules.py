import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import (
    HistoryConflict,
    InvalidRequest,
    Overloaded,
    PositionConflict,
    PositionGap,
    ServiceError,
    SessionDeleted,
    SessionLost,
    SessionNotFound,
    SessionQuarantined,
    StoreRegressed,
)
from holdfast.history_digest import INITIAL, MAX_NUMBER, run_of
from service.engine.rules import (
    MAX_KEPT_REPLIES,
    MAX_KEPT_REPLY_BYTES,
    Claim,
    check,
    continues,
    decide,
    keep_replies,
    sends_ahead,
)
from service.store.record import MAX_POSITION, KeptReply, Record, decode_replies, encode_replies

AT_6 = run_of(b"before").after(INITIAL)
AT_8 = run_of(b"ab").after(AT_6)
AT_10 = run_of(b"cd").after(AT_8)
KEPT = (KeptReply(8, 2, AT_6, AT_8, b"one"), KeptReply(10, 2, AT_8, AT_10, b"two"))
STORED = Record(5, 10, b"f" * 32, b"", KEPT, digest=AT_10)
DELETED = STORED._replace(deleted=True)


def claim(position=None, tokens=b"xy", **rest):
    return Claim(len(tokens), tokens, position, **rest)


@pytest.mark.parametrize("asked", [claim(10), claim(None), claim(10, digest=AT_10)])
def test_runs_where_the_session_stands(asked):
    assert decide(STORED, asked) is None


@pytest.mark.parametrize("digest", [0, 1])
@pytest.mark.parametrize(("position", "tokens", "reply"), [(8, b"cd", KEPT[1]), (6, b"ab", KEPT[0])])
def test_a_chunk_whose_reply_is_kept_is_replayed(position, tokens, reply, digest):
    assert decide(STORED, claim(position, tokens, digest=digest * reply.digest_before)) == reply


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (claim(8, b"dc"), PositionConflict),
        (claim(8, b"c"), PositionConflict),
        (claim(8, b"cd", digest=AT_6), PositionConflict),
        (claim(3), PositionConflict),
        (claim(10, digest=AT_8), HistoryConflict),
        (claim(10, b"cd", digest=AT_8), HistoryConflict),
        (claim(11), PositionGap),
        (claim(11, digest=AT_10), PositionGap),
        (claim(11, acknowledged=10), PositionGap),
        (claim(12, acknowledged=11), StoreRegressed),
        (claim(10, incarnation=6), SessionDeleted),
    ],
)
def test_a_chunk_out_of_place_is_refused_with_the_stored_position(asked, error):
    with pytest.raises(error) as caught:
        decide(STORED, asked)
    assert caught.value.expected_position == 10


def test_a_history_of_the_same_length_is_another_one():
    """The store has lost "cd", and another writer has put "yy" in its place."""
    replaced = STORED._replace(replies=(), digest=run_of(b"yy").after(AT_8))
    with pytest.raises(HistoryConflict):
        decide(replaced, claim(10, digest=AT_10))
    with pytest.raises(PositionConflict):
        decide(replaced, claim(8, b"cd", digest=AT_8))


def test_a_reply_to_the_same_tokens_after_another_history_is_not_given():
    """The store has lost everything from 6 on; others wrote "yy", then the very tokens of the chunk."""
    others = run_of(b"yy").after(AT_6)
    end = run_of(b"cd").after(others)
    replaced = STORED._replace(replies=(KeptReply(10, 2, others, end, b"theirs"),), digest=end)
    with pytest.raises(PositionConflict):
        decide(replaced, claim(8, b"cd", digest=AT_8))


def test_a_mismatch_blames_nobody():
    with pytest.raises(SessionDeleted) as caught:
        decide(STORED, claim(10, incarnation=6))
    assert "writer" not in caught.value.message
    assert str(STORED.incarnation) not in caught.value.message.split()


@pytest.mark.parametrize("asked", [claim(10), claim(None), claim(8), claim(11), claim(12, acknowledged=11)])
def test_in_quarantine_nothing_runs(asked):
    with pytest.raises(SessionQuarantined, match="fails on this") as caught:
        decide(STORED._replace(quarantine_reason="fails on this"), asked)
    assert caught.value.expected_position == 10


def test_in_quarantine_replies_that_are_kept_are_given_again():
    assert decide(STORED._replace(quarantine_reason="fails"), claim(8, b"cd")) == KEPT[1]


@pytest.mark.parametrize(
    ("stored", "asked", "error"),
    [
        (None, claim(3), SessionLost),
        (None, claim(0, incarnation=5), SessionLost),
        (None, claim(0), SessionNotFound),
        (None, claim(0, digest=INITIAL), SessionNotFound),
        (None, claim(None), SessionNotFound),
        (DELETED, claim(10), SessionDeleted),
        (DELETED, claim(0), SessionDeleted),
        (DELETED, claim(None), SessionDeleted),
        (DELETED, claim(0, incarnation=5), SessionDeleted),
    ],
)
def test_no_chunk_opens_a_session(stored, asked, error):
    with pytest.raises(error):
        decide(stored, asked)


small = st.integers(0, 3)
digests = st.integers(1, 3)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), small, digests, st.none() | small, small, st.just(0) | digests),
        min_size=1,
    )
)
def test_rows_continue_where_single_chunks_run(rows):
    """Each row: stored incarnation, position and digest; claimed position, meant incarnation and digest."""
    stamps = np.array([row[:3] for row in rows])
    positions = np.array([-1 if claimed is None else claimed for *_, claimed, _, _ in rows])
    incarnations = np.array([incarnation for *_, incarnation, _ in rows])
    meant = np.array([digest if claimed is not None else 0 for *_, claimed, _, digest in rows])
    runs = continues(stamps, positions, incarnations, meant, 2)
    for row, (stored, position, digest, claimed, incarnation, _) in enumerate(rows):
        record = Record(stored, position, b"f" * 32, digest=digest)
        asked = claim(claimed, incarnation=incarnation, digest=int(meant[row]))
        assert runs[row] == _runs(record, asked)
    if not any(incarnations):
        assert (continues(stamps, positions, None, meant, 2) == runs).all()
    if not any(meant):
        assert (continues(stamps, positions, incarnations, None, 2) == runs).all()


@pytest.mark.parametrize(("room", "runs"), [(1, False), (2, True), (3, True)])
def test_no_append_goes_beyond_the_last_position(room, runs):
    stamps = np.array([[5, MAX_POSITION - room, AT_10]])
    assert continues(stamps, np.array([-1]), None, None, 2).tolist() == [runs]
    assert _runs(STORED._replace(position=MAX_POSITION - room), claim(None)) == runs


def _runs(record, asked):
    try:
        return decide(record, asked) is None
    except ServiceError:
        return False


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (claim(-1), "position"),
        (claim(MAX_POSITION - 1), "position"),
        (claim(2**62), "position"),
        (claim(2**62 - 2), "position"),
        (claim(2**63 - 1), "position"),
        (claim(5, acknowledged=6), "acknowledged_position"),
        (claim(5, acknowledged=-1), "acknowledged_position"),
        (claim(None, acknowledged=0), "acknowledged_position"),
        (claim(5, incarnation=-1), "incarnation"),
        (claim(5, incarnation=2**53), "incarnation"),
        (claim(5, digest=-1), "history_digest"),
        (claim(5, digest=2**53), "history_digest"),
        (claim(None, digest=5), "history_digest"),
    ],
)
def test_numbers_out_of_range_are_refused(asked, field):
    with pytest.raises(InvalidRequest) as caught:
        check(asked)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "asked",
    [
        claim(5, incarnation=MAX_NUMBER),
        claim(5, digest=MAX_NUMBER),
        claim(5, acknowledged=0),
        claim(5, acknowledged=5),
        claim(0, acknowledged=0),
    ],
)
def test_numbers_at_the_ends_of_their_range_are_taken(asked):
    check(asked)


def test_the_last_positions_can_be_used():
    check(claim(MAX_POSITION - 2))
    stored = STORED._replace(position=MAX_POSITION - 2, replies=())
    assert decide(stored, claim(MAX_POSITION - 2)) is None
    assert decide(stored, claim(None)) is None
    with pytest.raises(InvalidRequest, match="the last is"):
        decide(stored, claim(None, b"xyz"))


def kept_with(replies, new, acknowledged):
    tail = keep_replies(encode_replies(replies), new, acknowledged)
    kept = decode_replies(tail.data)
    assert len(kept) == tail.reply_count
    return kept


def test_unacknowledged_replies_are_kept():
    new = KeptReply(12, 2, AT_10, 7, b"three")
    assert kept_with(KEPT, new, 8) == (KEPT[1], new)


def test_replies_are_kept_up_to_the_limits():
    new = KeptReply(99, 1, 1, 1, b"x")
    many = tuple(KeptReply(index + 1, 1, 1, 1, b"") for index in range(MAX_KEPT_REPLIES - 1))
    assert kept_with(many, new, 0) == (*many, new)
    large = KeptReply(1, 1, 1, 1, bytes(MAX_KEPT_REPLY_BYTES - 1))
    assert kept_with((large,), new, 0) == (large, new)
    larger = new._replace(outputs=bytes(MAX_KEPT_REPLY_BYTES + 1))
    assert kept_with((), larger, 0) == (larger,), "one is kept however large it is"


@pytest.mark.parametrize(("acknowledged", "is_ahead"), [(-1, False), (0, True), (9, True), (10, False)])
def test_who_has_not_acknowledged_the_last_chunk_sends_ahead(acknowledged, is_ahead):
    stamps = np.array([[5, 10, 3]])
    assert sends_ahead(stamps, np.array([acknowledged])).tolist() == [is_ahead]


def test_too_many_unacknowledged_replies_are_refused():
    many = tuple(KeptReply(index + 1, 1, 1, 1, b"") for index in range(MAX_KEPT_REPLIES))
    with pytest.raises(Overloaded):
        kept_with(many, KeptReply(99, 1, 1, 1, b""), 0)


def test_too_large_unacknowledged_replies_are_refused():
    large = (KeptReply(1, 1, 1, 1, bytes(MAX_KEPT_REPLY_BYTES)),)
    with pytest.raises(Overloaded):
        kept_with(large, KeptReply(2, 1, 1, 1, b"x"), 0)
