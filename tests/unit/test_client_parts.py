import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.replay_buffer import ReplayBuffer
from holdfast.retry import RetryPolicy
from holdfast.tokens import split


@given(st.lists(st.binary(min_size=1, max_size=9)), st.integers(1, 30), st.integers(0, 99))
def test_the_buffer_gives_back_what_was_applied_or_says_that_it_cannot(chunks, max_tokens, position):
    buffer, whole = ReplayBuffer(max_tokens), b""
    for chunk in chunks:
        buffer.append(len(whole), chunk)
        whole += chunk
    position = min(position, len(whole))
    try:
        pieces = list(buffer.since(position))
    except LookupError:
        assert not chunks or position < len(whole) - max_tokens
    else:
        assert b"".join(tokens for _, tokens in pieces) == whole[position:]
        assert all(whole[start:].startswith(tokens) for start, tokens in pieces)


@given(st.integers(1, 1000), st.floats(0, 5))
def test_a_pause_is_bounded_and_at_least_what_the_server_asks(attempt, retry_after_s):
    policy = RetryPolicy()
    assert retry_after_s <= policy.pause_s(attempt, retry_after_s) <= retry_after_s + policy.max_s


@pytest.mark.parametrize("size", [1, 2, 5, 99])
def test_split_keeps_every_token_in_order(size):
    assert b"".join(split(b"abcdefg", size)) == b"abcdefg"


@pytest.mark.parametrize("kind", [holdfast.Client, holdfast.AsyncClient])
def test_a_client_without_a_connection_is_refused(kind):
    with pytest.raises(ValueError, match="connections is 0"):
        kind("127.0.0.1:1", connections=0)
