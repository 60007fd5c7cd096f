"""Gaps: of the requests of which nobody knows the fate those fill them that were applied."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.history_digest import INITIAL, run_of
from holdfast.verify.chain import check
from holdfast.verify.session_history import (
    Attempt,
    OpenGeneration,
    Outputs,
    Reply,
    SessionHistory,
    Sight,
)
from tests.support.judged_sessions import LIFE, Session, chunks, judged, place_of, step_in


@given(st.integers(2, 4), st.integers(1, 4), st.data())
def test_of_many_broken_streams_the_digest_tells_what_each_applied(streams, length, data):
    session = Session(digests=True)
    session.step([1, 2, 3])
    start = len(session.log)
    sent = [
        [session.send([10 * stream + index], start + index) for index in range(length)]
        for stream in range(streams)
    ]
    which = data.draw(st.lists(st.integers(0, streams - 1), min_size=length, max_size=length))
    session.log += [int(sent[stream][index].tokens[0]) for index, stream in enumerate(which)]
    session.answer(
        session.send([200], len(session.log)), before=list(session.log), position=start + length + 1
    )
    wrongs, found = judged(session)
    assert (wrongs, found.digests) == ({}, 2)


@pytest.mark.parametrize("is_taken_over", [False, True])
@given(st.integers(2, 4), st.data())
def test_of_several_unanswered_writers_what_was_seen_tells_which_was_applied(is_taken_over, writers, data):
    """Nothing was acknowledged after it in that life: who looked, or took over, saw the digest."""
    session = Session()
    session.step([1, 2])
    sent = [session.send([100 + writer], 2) for writer in range(writers)]
    session.log += [int(data.draw(st.sampled_from(sent)).tokens[0])]
    digest = run_of(np.array(session.log)).after(INITIAL)
    session.history.sights.append(Sight(session.now(), LIFE, 3, 0 if is_taken_over else digest))
    session.history.sights.append(Sight(session.now(), LIFE + 1, 3, digest, took_over=True))
    step_in(session, LIFE + 1, [4, 5])
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked) == ({}, 0)


def test_a_known_digest_decides_against_one_that_was_only_seen():
    """The store may have forgotten what was seen: here it went back, and the slow request came then."""

    def digest(*tokens):
        return run_of(np.array(tokens)).after(INITIAL)

    slow, forgotten, last = np.array([7]), np.array([5]), np.array([9])
    history = SessionHistory()
    history.sights += [
        Sight(1.0, 11, 0, digest=INITIAL, is_opening=True, heard_s=1.1),
        Sight(4.0, 11, 1, digest=digest(5), heard_s=4.1),
        Sight(6.0, 11, 1, digest=digest(7), heard_s=6.1),
    ]
    history.attempts += [
        Attempt(2.0, slow, 0, 11),
        Attempt(3.0, forgotten, 0, 11),
        Attempt(5.0, np.array([6]), 1, 11, None, "STORE_REGRESSED", 0),
        Attempt(7.0, last, 1, 11, Reply(7.1, 11, 2, False, Outputs(1), digest=digest(7, 9))),
    ]
    found = check(history, None)
    assert found.is_good, found.notes


@pytest.mark.parametrize(("streams", "length"), [(2, 1), (2, 12), (3, 4), (6, 3), (6, 12)])
def test_what_the_last_of_many_broken_streams_applied_is_found(streams, length):
    """Each sent other tokens to the same positions, so there are streams ** length ways to fill them."""
    rng = random.Random(length)
    session = Session()
    session.step([1, 2, 3])
    start = len(session.log)
    for _ in range(streams):
        sent = [session.send([rng.randrange(256)], start + index) for index in range(length)]
    session.log += [int(attempt.tokens[0]) for attempt in sent]
    session.look()
    session.step([7, 8])
    wrongs, found = judged(session)
    assert wrongs == {}
    assert found.tokens == 5


@given(chunks(), st.data())
def test_tokens_that_nobody_sent_are_unexplained(pieces, data):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    place = place_of(data, len(pieces))
    del session.history.attempts[place]
    assert judged(session)[0] == {"unexplained": len(pieces[place])}


@given(chunks(), st.data())
def test_of_two_writers_one_chain_counts(pieces, data):
    """Each position is won by one of two writers; the loser's chunk at it is refused, or never answered."""
    session = Session()
    rivals = list(range(300, 600))
    for tokens in pieces:
        position = len(session.log)
        rival = session.send([rivals.pop()], position)
        if data.draw(st.booleans()):
            session.log += rival.tokens.tolist()  # won, and its reply never came
            loser = session.send(tokens, position)
            loser.reason, loser.expected_position = "POSITION_CONFLICT", position + 1
            position += 1
        elif data.draw(st.booleans()):
            rival.reason = "POSITION_CONFLICT"
        attempt = session.send(tokens, position)
        session.log += tokens
        session.answer(attempt)
    assert judged(session)[0] == {}


def test_tokens_of_a_broken_generation_that_nobody_was_told_explain_where_the_session_stands():
    session = Session()
    session.step([1, 2])
    session.history.sights.append(Sight(session.now(), LIFE, 5))
    wrongs, _ = judged(session)
    assert wrongs == {"unexplained": 3}
    session.history.generations.append(OpenGeneration(LIFE, 2))
    wrongs, _ = judged(session)
    assert wrongs == {}
    session.history.generations[:] = [OpenGeneration(LIFE, 1)]
    wrongs, _ = judged(session)
    assert wrongs == {"unexplained": 3}


@pytest.mark.parametrize("is_repetition", [True, False])
def test_the_last_token_of_a_generation_may_be_applied_again_by_a_store_that_lost_it(is_repetition):
    """The next call begins with it, so nobody is told of the loss; a step is sent again once it is told."""
    session = Session(digests=True)
    session.step([1, 2])
    session.step([3])
    again = session.send([3], 2)
    again.is_repetition = is_repetition
    session.answer(again)
    wrongs, _ = judged(session)
    assert wrongs == ({} if is_repetition else {"twice": 1})


@pytest.mark.parametrize("is_known", [True, False])
def test_a_broken_generation_may_have_applied_its_prompt_and_more(is_known):
    session = Session()
    session.step([1, 2])
    session.send([3, 4, 5], 2)
    if is_known:
        session.history.generations.append(OpenGeneration(LIFE, 5))
    session.log += [3, 4, 5, 6, 7]
    session.look()
    wrongs, _ = judged(session)
    assert wrongs == ({} if is_known else {"unexplained": 5})


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("prompt", [[], [3, 4]])
def test_a_step_that_fits_where_a_broken_generation_went_on_need_not_have_been_applied(prompt, digests):
    """Its writer had left a generation and sent the step to where it knew the session; it was refused."""
    session = Session(digests=digests)
    session.step([1, 2])
    if prompt:
        session.send(prompt, 2)
    session.history.generations.append(OpenGeneration(LIFE, 2 + len(prompt)))
    session.log += [*prompt, 5, 6]
    refused = session.send([7, 8, 9, 10][: len(prompt) + 2], 2)
    refused.reason, refused.expected_position = "POSITION_CONFLICT", len(session.log)
    session.step([11, 12])
    assert judged(session)[0] == {}


def test_a_digest_proves_that_a_step_was_applied_where_a_generation_was_broken_off():
    session = Session(digests=True)
    session.step([1, 2])
    session.history.generations.append(OpenGeneration(LIFE, 2))
    session.send([5, 6], 2)
    session.log += [5, 6]
    session.step([11, 12])
    assert judged(session)[0] == {}
    session.step([13, 14])
    session.history.attempts[-1].tokens[:] = 15, 16
    assert judged(session)[0] == {"wrong": 2}  # nothing before it is in doubt
