import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.rules import (
    MAX_KEPT_REPLIES,
    MAX_KEPT_REPLY_BYTES,
    Claim,
    Verdict,
    check,
    continues,
    decide,
    keep_replies,
)
from service.errors import (
    InvalidRequest,
    Overloaded,
    PositionConflict,
    PositionGap,
    ServiceError,
    SessionClosed,
    SessionLost,
    SessionNotFound,
    SessionQuarantined,
    StoreRegressed,
)
from service.store.record import KeptReply, Record

KEPT = (KeptReply(8, 2, b"first", b"one"), KeptReply(10, 2, b"last", b"two"))
STORED = Record(5, 10, b"f" * 32, b"", KEPT)


def claim(position=None, digest=b"x", count=2, **rest):
    return Claim(count, digest, position, **rest)


@pytest.mark.parametrize("position", [10, None])
def test_runs_where_the_session_stands(position):
    assert decide(STORED, claim(position)) is Verdict.RUN


@pytest.mark.parametrize(("position", "digest", "reply"), [(8, b"last", KEPT[1]), (6, b"first", KEPT[0])])
def test_a_chunk_whose_reply_is_kept_is_replayed(position, digest, reply):
    assert decide(STORED, claim(position, digest)) == reply


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (claim(8, b"other"), PositionConflict),
        (claim(8, b"last", count=1), PositionConflict),
        (claim(3), PositionConflict),
        (claim(11), PositionGap),
        (claim(11, acknowledged=10), PositionGap),
        (claim(12, acknowledged=11), StoreRegressed),
        (claim(10, incarnation=6), SessionClosed),
    ],
)
def test_a_chunk_out_of_place_is_refused_with_the_stored_position(asked, error):
    with pytest.raises(error) as caught:
        decide(STORED, asked)
    assert caught.value.expected_position == 10


@pytest.mark.parametrize("asked", [claim(10), claim(None), claim(8), claim(11), claim(12, acknowledged=11)])
def test_in_quarantine_nothing_runs(asked):
    with pytest.raises(SessionQuarantined, match="fails on this") as caught:
        decide(STORED._replace(quarantine_reason="fails on this"), asked)
    assert caught.value.expected_position == 10


def test_in_quarantine_replies_that_are_kept_are_given_again():
    assert decide(STORED._replace(quarantine_reason="fails"), claim(8, b"last")) == KEPT[1]


@pytest.mark.parametrize("stored", [None, STORED._replace(closed=True)])
@pytest.mark.parametrize("position", [0, None])
def test_position_zero_opens(stored, position):
    assert decide(stored, claim(position)) is Verdict.OPEN


@pytest.mark.parametrize(
    ("stored", "asked", "error"),
    [
        (None, claim(3), SessionLost),
        (None, claim(0, incarnation=5), SessionLost),
        (None, claim(0, names_model=False), SessionNotFound),
        (STORED._replace(closed=True), claim(10), SessionClosed),
        (STORED._replace(closed=True), claim(0, incarnation=5), SessionClosed),
    ],
)
def test_what_is_gone_is_never_silently_a_zero_state(stored, asked, error):
    with pytest.raises(error):
        decide(stored, asked)


small = st.integers(0, 3)


@given(st.lists(st.tuples(small, small, st.none() | small, st.integers(0, 2)), min_size=1))
def test_rows_continue_where_single_chunks_run(rows):
    """Each row: stored incarnation (0: nothing) and position, claimed position, meant incarnation."""
    drawn = 2
    stands_at = [(stored, position) if stored else (drawn + 7, 0) for stored, position, *_ in rows]
    positions = [-1 if claimed is None else claimed for *_, claimed, _ in rows]
    meant = [incarnation for *_, incarnation in rows]
    runs = continues(np.array(stands_at), np.array(positions), np.array(meant))
    for row, (stored, position, claimed, incarnation) in enumerate(rows):
        record = Record(stored, position, b"f" * 32) if stored else None
        assert runs[row] == _runs(record, claim(claimed, incarnation=incarnation))
    if not any(meant):
        assert (continues(np.array(stands_at), np.array(positions), None) == runs).all()


def _runs(record, asked):
    try:
        return isinstance(decide(record, asked), Verdict)
    except ServiceError:
        return False


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (claim(-1), "position"),
        (claim(5, acknowledged=6), "acknowledged_position"),
        (claim(5, acknowledged=-1), "acknowledged_position"),
        (claim(None, acknowledged=0), "acknowledged_position"),
        (claim(5, incarnation=-1), "incarnation"),
    ],
)
def test_numbers_out_of_range_are_refused(asked, field):
    with pytest.raises(InvalidRequest) as caught:
        check(asked)
    assert caught.value.field == field


def test_unacknowledged_replies_are_kept():
    new = KeptReply(12, 2, b"new", b"three")
    assert keep_replies(KEPT, new, 8) == (KEPT[1], new)


def test_too_many_unacknowledged_replies_are_refused():
    many = tuple(KeptReply(index + 1, 1, b"", b"") for index in range(MAX_KEPT_REPLIES))
    with pytest.raises(Overloaded):
        keep_replies(many, KeptReply(99, 1, b"", b""), 0)


def test_too_large_unacknowledged_replies_are_refused():
    large = (KeptReply(1, 1, b"", bytes(MAX_KEPT_REPLY_BYTES)),)
    with pytest.raises(Overloaded):
        keep_replies(large, KeptReply(2, 1, b"", b"x"), 0)
