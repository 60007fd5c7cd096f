import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.client.replay_buffer import ReplayBuffer
from holdfast.client.retry import RetryPolicy, limit_s, pause_s
from holdfast.client.tokens import split
from holdfast.client.unanswered import Unanswered
from holdfast.history_digest import INITIAL, digest_after


@given(
    st.lists(st.binary(min_size=1, max_size=9)), st.integers(1, 30), st.integers(0, 99), st.integers(1, 9)
)
def test_the_buffer_gives_back_what_was_applied_or_says_that_it_cannot(chunks, max_tokens, position, size):
    buffer, whole = ReplayBuffer(max_tokens), b""
    for chunk in chunks:
        buffer.append(len(whole), digest_after(INITIAL, whole), chunk)
        whole += chunk
    position = min(position, len(whole))
    try:
        pieces = buffer.since(position, size)
    except LookupError:
        assert not chunks or position < len(whole) - max_tokens
    else:
        assert b"".join(piece.tokens for piece in pieces) == whole[position:]
        assert all(whole[piece.position :].startswith(piece.tokens) for piece in pieces)
        assert all(len(piece.tokens) == size for piece in pieces[:-1])
        for piece in pieces:
            assert piece.history_digest == digest_after(INITIAL, whole[: piece.position])
        assert buffer.digest_at(position) == digest_after(INITIAL, whole[:position])


def test_a_buffer_that_may_keep_nothing_keeps_nothing():
    buffer = ReplayBuffer(0)
    for position in range(3):
        buffer.append(position, 0, b"a")
    assert not buffer.reaches(2)


@pytest.mark.parametrize("token", [b"a", np.ones(1, np.int64), np.ones((1, 4), np.float32)])
def test_a_buffer_of_many_single_tokens_gives_the_collector_little_to_look_at(token):
    """It looks at all objects again and again, which stops everything else of a client."""
    gc.collect()
    before = len(gc.get_objects())
    buffer = ReplayBuffer(65_536)
    for position in range(20_000):
        buffer.append(position, 1, token)
    assert buffer.reaches(0)
    assert len(gc.get_objects()) - before < 1000


def test_tokens_of_several_kinds_come_back_as_they_were():
    buffer = ReplayBuffer(99)
    for position, tokens in enumerate([b"a", b"b", np.array([3]), np.array([4]), b"c"]):
        buffer.append(position, 0, tokens)
    pieces = [(piece.position, list(piece.tokens)) for piece in buffer.since(1, 8)]
    assert pieces == [(1, [98]), (2, [3, 4]), (4, [99])]


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.booleans()), min_size=1),
    st.integers(0, 99),
    st.integers(1, 9),
)
def test_what_had_a_cursor_comes_back_with_it_and_with_nothing_else(chunks, position, size):
    buffer, whole, cursors = ReplayBuffer(1000), b"", {}
    for chunk, has_cursor in chunks:
        cursor = b"%d" % len(whole) if has_cursor else b""
        buffer.append(len(whole), digest_after(INITIAL, whole), chunk, cursor)
        whole += chunk
        cursors[len(whole)] = cursor, len(chunk)
    position = min(position, len(whole))
    if position == len(whole):
        return
    pieces = buffer.since(position, size)
    assert b"".join(piece.tokens for piece in pieces) == whole[position:]
    for piece in pieces:
        end = piece.position + len(piece.tokens)
        if piece.cursor:
            cursor, count = cursors[end]
            assert (piece.cursor, piece.position) == (cursor, max(position, end - count))
        assert piece.cursor or len(piece.tokens) <= size
    wanted = [cursor for end, (cursor, _) in cursors.items() if cursor and end > position]
    assert [piece.cursor for piece in pieces if piece.cursor] == wanted


def apply(commands):
    """Runs sends and answers of one session past `Unanswered`; returns what each send said."""
    unanswered, said = Unanswered(), []
    for name, position in commands:
        if name == "send":
            said += unanswered.send(["s"], [position])
        elif name == "answer":
            unanswered.answer(["s"], [position], 2)
        else:
            unanswered.lose(["s"])
    return said


def test_a_session_is_answered_up_to_its_first_chunk_without_a_reply():
    said = apply([("send", 0), ("send", 2), ("answer", 0), ("send", 4), ("answer", 2), ("answer", 4)])
    assert said == [0, 0, 2]


def test_lost_replies_are_missing_until_their_chunks_are_sent_again():
    lost = [("send", 0), ("send", 2), ("lose", 0), ("lose", 2)]
    again = [("send", 0), ("send", 2), ("answer", 0), ("answer", 2), ("send", 4)]
    assert apply(lost + again) == [0, 0, 0, 0, 4]


def test_a_session_whose_tokens_are_sent_again_is_answered_up_to_there():
    assert apply([("send", 8), ("answer", 8), ("send", 4), ("answer", 4), ("send", 6)]) == [8, 4, 6]


@pytest.mark.parametrize("level", ["fsync", "FSYNCED", "", "replicated+fsynced"])
@pytest.mark.parametrize("kind", [holdfast.Client, holdfast.AsyncClient])
def test_a_level_that_does_not_exist_is_refused(kind, level):
    with pytest.raises(ValueError, match="ack_level is"):
        kind("127.0.0.1:1", ack_level=level)


@given(st.integers(1, 1000), st.floats(0, 5))
def test_a_pause_is_bounded_and_at_least_what_the_server_asks(attempt, retry_after_s):
    policy = RetryPolicy()
    assert retry_after_s <= pause_s(policy, attempt, retry_after_s) <= retry_after_s + policy.max_s


def test_clients_that_fail_together_come_back_apart():
    policy = RetryPolicy()
    pauses_s = [pause_s(policy, 20) for _ in range(1000)]
    early = sum(each_s < policy.max_s / 2 for each_s in pauses_s)
    assert 300 < early < 700, "an even spread has about 500"


@pytest.mark.parametrize("size", [1, 2, 5, 99])
def test_split_keeps_every_token_in_order(size):
    assert b"".join(split(b"abcdefg", size)) == b"abcdefg"


@pytest.mark.parametrize("kind", [holdfast.Client, holdfast.AsyncClient])
def test_a_client_without_a_connection_is_refused(kind):
    with pytest.raises(ValueError, match="connections is 0"):
        kind("127.0.0.1:1", connections=0)


def test_attempts_may_take_longer_and_longer():
    policy = RetryPolicy(attempt_s=2)
    assert [limit_s(policy, attempt) for attempt in range(3)] == [2, 4, 8]
