"""The account of a session: whatever is done to it, every token is given, pending, or known as dropped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.client.ledger import Asked, Ledger
from holdfast.errors import ChunkPending, HistoryConflict, HoldfastError, PositionConflict, PositionGap
from holdfast.history_digest import INITIAL, digest_after
from holdfast.v1 import holdfast_pb2 as pb

ASKED = Asked(None, pb.ACK_LEVEL_UNSPECIFIED)


def open_ledger(text=b"", replay_tokens=100, **fields):
    session = pb.Session(
        session_id="s",
        incarnation=7,
        position=len(text),
        model=pb.ModelRef(name="m", version=1),
        history_digest=digest_after(INITIAL, text),
    )
    return Ledger(pb.Session(session_id=session.session_id, **fields) if fields else session, replay_tokens)


def reply_to(entry, **changes):
    fields = {
        "session_id": "s",
        "position": entry.position + len(entry.tokens),
        "history_digest": digest_after(entry.history_digest, entry.tokens),
    }
    return pb.ChunkResult(**fields | changes)


def apply(ledger, *pieces):
    for entry in ledger.take(pieces, ASKED):
        ledger.answer(entry, reply_to(entry))
    return ledger.give(len(pieces))


def test_an_entry_continues_what_was_entered_before_it():
    ledger = open_ledger(b"xyz")
    first, second = ledger.take([b"ab", b"c"], ASKED)
    assert (first.position, second.position) == (3, 5)
    assert second.history_digest == digest_after(INITIAL, b"xyzab")
    assert ledger.pending == ((3, b"ab"), (5, b"c"))
    chunk = ledger.to_chunk(second)
    assert (chunk.position, chunk.acknowledged_position, chunk.incarnation) == (5, 3, 7)
    assert chunk.history_digest == second.history_digest


def test_the_position_moves_when_a_reply_is_given_and_back_when_it_did_not_arrive():
    ledger = open_ledger()
    first, second = ledger.take([b"ab", b"c"], ASKED)
    ledger.answer(first, reply_to(first))
    assert (ledger.position, ledger.acknowledged, len(ledger.pending)) == (0, 2, 2)
    [reply] = ledger.give()
    assert (ledger.position, ledger.history_digest) == (2, digest_after(INITIAL, b"ab"))
    ledger.take_back([reply])
    assert (ledger.position, ledger.pending) == (0, ((0, b"ab"), (2, b"c")))
    assert list(ledger.unanswered) == [second]
    assert ledger.give() == [reply]


def test_only_the_last_replies_can_be_taken_back():
    ledger = open_ledger()
    [first] = apply(ledger, b"a")
    [second] = apply(ledger, b"b")
    ledger.take_back([first])
    assert ledger.pending == ()
    ledger.take_back([second])
    ledger.take_back([second])
    assert ledger.pending == ((1, b"b"),)


def test_what_a_position_makes_of_a_step():
    ledger = open_ledger()
    apply(ledger, b"ab", b"cd")
    assert ledger.find(b"ef", 4) is None
    assert ledger.find(b"cd", 2) is None
    with pytest.raises(PositionGap) as caught:
        ledger.find(b"ef", 5)
    assert caught.value.expected_position == 4
    entry, _ = ledger.take([b"ef", b"g"], ASKED)
    assert ledger.find(b"ef", 4) is entry
    for tokens, position in ((b"xy", 4), (b"g", 6), (b"cd", 2), (b"h", 7)):
        with pytest.raises(ChunkPending):
            ledger.find(tokens, position)
    with pytest.raises(ChunkPending):
        ledger.check_nothing_pending()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"ab", np.array([97, 98]), True),
        (b"ab", b"abc", False),
        (np.array([[1, 2]], np.float32), np.array([[1, 2]], np.float32), True),
        (np.array([[1, 2]], np.float32), np.array([[1], [2]], np.float32), False),
        (np.array([[0]], np.float32), np.array([0]), False),
    ],
)
def test_the_same_tokens_in_other_forms(one, other, same):
    ledger = open_ledger()
    ledger.take([one], ASKED)
    if same:
        assert ledger.find(other, 0) is not None
    else:
        with pytest.raises(ChunkPending):
            ledger.find(other, 0)


def test_a_repetition_names_the_history_before_it():
    ledger = open_ledger()
    apply(ledger, b"ab", b"cd")
    chunk = ledger.to_chunk(ledger.repeat(b"bc", 1, ASKED))
    assert (chunk.position, chunk.acknowledged_position) == (1, 1)
    assert chunk.history_digest == digest_after(INITIAL, b"a")
    with pytest.raises(PositionConflict):
        ledger.repeat(b"xx", 1, ASKED)
    resumed = open_ledger(b"abcd")
    assert resumed.to_chunk(resumed.repeat(b"whatever", 1, ASKED)).history_digest == 0


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"history_digest": 5}, HistoryConflict),
        ({"position": 9}, HoldfastError),
        ({"session_id": "t"}, HoldfastError),
    ],
)
def test_a_reply_that_is_not_the_one_leaves_its_chunk_pending(changes, kind):
    ledger = open_ledger()
    [entry] = ledger.take([b"ab"], ASKED)
    with pytest.raises(kind):
        ledger.answer(entry, reply_to(entry, **changes))
    assert (ledger.pending, entry.is_unsure, entry.reply) == (((0, b"ab"),), True, None)


@pytest.mark.parametrize("position", [0, 5])
def test_a_server_that_tells_no_digests_is_not_held_to_any(position):
    ledger = open_ledger(incarnation=1, position=position)
    entry, _ = ledger.take([b"ab", b"c"], ASKED)
    ledger.answer(entry, reply_to(entry, history_digest=12345))
    ledger.give()
    assert ledger.history_digest == 0
    assert ledger.to_chunk(ledger.entries[0]).history_digest == 0


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=4)),
        st.tuples(st.sampled_from(["answer", "give", "take back", "drop"]), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(ACTS)
def test_every_token_is_given_pending_or_dropped(acts):
    ledger, sent, dropped, given_back = open_ledger(), b"", 0, []
    for name, pieces in acts:
        if name == "take":
            ledger.take(pieces, ASKED)
            sent += b"".join(pieces)
        elif name == "answer":
            entry = next(ledger.unanswered, None)
            if entry is not None:
                ledger.answer(entry, reply_to(entry))
        elif name == "give" and ledger.entries and ledger.entries[0].reply is not None:
            given_back = ledger.give()
        elif name == "take back":
            ledger.take_back(given_back)
        elif name == "drop":
            count = sum(len(chunk.tokens) for chunk in ledger.drop())
            sent, dropped = sent[: len(sent) - count], dropped + count
        pending = b"".join(chunk.tokens for chunk in ledger.pending)
        assert len(sent) == ledger.position + len(pending)
        assert sent.endswith(pending)
        assert ledger.history_digest == digest_after(INITIAL, sent[: ledger.position])
        at = ledger.position
        for chunk in ledger.pending:
            assert chunk.position == at
            at += len(chunk.tokens)
