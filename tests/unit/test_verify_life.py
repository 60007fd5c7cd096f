"""One life: how it begins, what stands where in it, and how it ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.history_digest import INITIAL, run_of
from holdfast.verify.session_history import Attempt, Deletion, Sight
from tests.support.judged_sessions import LIFE, Session, chunks, judged, place_of, step_in


@given(chunks(), st.data())
def test_a_session_behind_what_was_acknowledged_has_lost_it(pieces, data):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    kept = sum(len(tokens) for tokens in pieces[: place_of(data, len(pieces)) + 1])
    lost = len(session.log) - kept
    session.log = session.log[:kept]
    session.look()
    assert judged(session)[0] == {"lost": lost}


@given(chunks(), chunks())
def test_a_session_that_began_anew_has_lost_its_life_unless_it_was_deleted(pieces, others):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    length = len(session.log)
    session.history.sights.append(Sight(session.now(), LIFE + 1, 0, is_opening=True))
    session.log = []
    for tokens in others:
        tokens = [token + 300 for token in tokens]
        attempt = Attempt(session.now(), np.array(tokens), len(session.log), LIFE + 1)
        session.history.attempts.append(attempt)
        session.log += tokens
        session.answer(attempt)
        attempt.reply.incarnation = LIFE + 1
    assert judged(session)[0] == {"lost": length}
    session.history.deletions.append(Deletion(session.now(), LIFE))
    assert judged(session)[0] == {}


@given(chunks(), st.data())
def test_a_session_that_was_lost_and_told_everything_again_has_lost_nothing(pieces, data):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    refused = session.send([256], len(session.log))
    refused.reason = "SESSION_LOST"
    session.history.sights.append(Sight(session.now(), LIFE + 1, 0, is_opening=True))
    told, session.log = session.log, []
    count = data.draw(st.integers(0, len(told)))
    while len(session.log) < count:
        tokens = told[len(session.log) : count][:4]
        attempt = Attempt(session.now(), np.array(tokens), len(session.log), LIFE + 1)
        session.history.attempts.append(attempt)
        session.log += tokens
        session.answer(attempt)
        attempt.reply.incarnation = LIFE + 1
    assert judged(session)[0] == ({"lost": len(told) - count} if count < len(told) else {})


@given(chunks(), chunks())
def test_a_takeover_goes_on_with_the_state(pieces, others):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    session.history.sights.append(Sight(session.now(), LIFE + 1, len(session.log), took_over=True))
    for tokens in others:
        attempt = Attempt(session.now(), np.array(tokens), len(session.log), LIFE + 1)
        session.history.attempts.append(attempt)
        session.log += tokens
        session.answer(attempt)
        attempt.reply.incarnation = LIFE + 1
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked, found.tokens) == ({}, 0, len(session.log))


def put_back(session, count, incarnation, **fields):
    """Puts a session back to where it had so many tokens; the client hears of it."""
    session.log = session.log[:count]
    digest = run_of(np.array(session.log)).after(INITIAL) if count else INITIAL
    sent_s, fields = session.now(), {"was_put_back": True, "heard_s": session.now()} | fields
    session.history.sights.append(Sight(sent_s, incarnation, count, digest, **fields))


@given(chunks(), chunks(), st.data(), st.booleans())
def test_a_session_that_was_put_back_goes_on_from_there_and_has_lost_nothing(pieces, others, data, digests):
    session, numbers = Session(digests=digests), range(LIFE + 1, LIFE + 4)
    for tokens in pieces:
        session.step(tokens)
    for number in numbers:
        put_back(session, data.draw(st.integers(0, len(session.log))), number)
        for tokens in others:
            step_in(session, number, [token + 300 * number for token in tokens])
    wrongs, found = judged(session)
    assert wrongs == {}
    assert found.unchecked == 0 or digests


def test_a_checkpoint_of_an_earlier_life_is_found():
    session = Session()
    session.step([1, 2])
    session.step([3])
    whole = list(session.log)
    put_back(session, 1, LIFE + 1)
    step_in(session, LIFE + 1, [4, 5])
    session.log = whole
    put_back(session, 3, LIFE + 2)
    step_in(session, LIFE + 2, [6])
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked) == ({}, 0)


def test_outputs_after_a_restore_that_go_on_from_another_state_are_wrong():
    session = Session()
    session.step([1, 2])
    session.step([3])
    put_back(session, 2, LIFE + 1)
    session.log = [1, 3]
    step_in(session, LIFE + 1, [4])
    assert judged(session)[0]


def test_a_takeover_behind_the_checkpoint_that_was_restored_does_not_have_its_tokens():
    """The store had lost the restore: what it went back to is less than what the life before began with."""
    session = Session()
    session.step([1, 2])
    session.step([3, 4])
    put_back(session, 4, LIFE + 1)
    step_in(session, LIFE + 1, [5])
    session.log = [1, 2]
    session.history.sights.append(Sight(session.now(), LIFE + 2, 2, took_over=True))
    step_in(session, LIFE + 2, [6, 7])
    assert judged(session)[0] == {"lost": 3}


def test_a_takeover_where_others_had_gone_on_does_not_have_the_tokens_that_were_recorded():
    """The store had lost tokens, and a writer that recorded nothing applied others in their place."""
    session = Session()
    session.step([1, 2])
    session.step([3, 4])
    session.log = [1, 2, 8, 9]
    stood = run_of(np.array(session.log)).after(INITIAL)
    session.history.sights.append(Sight(session.now(), LIFE + 1, 4, stood, took_over=True))
    step_in(session, LIFE + 1, [5])
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked) == ({}, 1)


@pytest.mark.parametrize(("asked_s", "lost"), [([6.5], 0), ([], 3), ([60.0], 3)])
def test_a_restore_whose_answer_did_not_come_is_no_new_beginning(asked_s, lost):
    session = Session(digests=True)
    session.step([1, 2])
    session.step([3])
    session.history.restores = asked_s
    put_back(session, 2, LIFE + 1, was_put_back=False)
    step_in(session, LIFE + 1, [4])
    assert judged(session)[0] == ({"lost": lost} if lost else {})


@pytest.mark.parametrize(("asked_s", "lost"), [([3.5], 0), ([], 2), ([60.0], 2)])
def test_a_takeover_whose_answer_did_not_come_is_no_new_beginning(asked_s, lost):
    session = Session(digests=True)
    session.step([1, 2])
    session.history.takeovers = asked_s
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 1, 2, digest))
    step_in(session, LIFE + 1, [3])
    assert judged(session)[0] == ({"lost": lost} if lost else {})


@pytest.mark.parametrize(("asked_s", "lost"), [(3.5, 0), (None, 2), (60.0, 2)])
def test_an_answered_takeover_may_have_taken_over_before_where_another_followed(asked_s, lost):
    """The answer to its first attempt was lost; the second found that somebody else had taken over."""
    session = Session(digests=True)
    session.step([1, 2])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 1, 2, digest))
    step_in(session, LIFE + 1, [3])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights += [
        Sight(session.now(), LIFE + 2, 3, digest, took_over=True),
        Sight(70.0, LIFE + 3, 3, digest, took_over=True, asked_s=asked_s),
    ]
    assert judged(session)[0] == ({"lost": lost} if lost else {})


def test_a_retried_takeover_explains_no_life_that_was_seen_only_after_its_answer():
    session = Session(digests=True)
    session.step([1, 2])
    digest = session.history.attempts[-1].reply.digest
    asked_s = session.now()
    session.history.sights.append(
        Sight(session.now(), LIFE + 1, 2, digest, took_over=True, asked_s=asked_s, heard_s=session.now())
    )
    step_in(session, LIFE + 1, [3])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 2, 3, digest))
    step_in(session, LIFE + 2, [4])
    assert judged(session)[0] == {"lost": 1}


@pytest.mark.parametrize(("asked_s", "lost"), [([3.5], 0), ([], 2), ([60.0], 2)])
def test_a_takeover_of_which_only_a_reply_tells_is_no_new_beginning(asked_s, lost):
    session = Session(digests=True)
    session.step([1, 2])
    session.history.takeovers = asked_s
    step_in(session, LIFE + 1, [3])
    assert judged(session)[0] == ({"lost": lost} if lost else {})


def test_what_is_missing_after_a_takeover_of_which_only_a_reply_tells_is_lost():
    session = Session(digests=True)
    session.step([1, 2])
    session.history.takeovers = [3.5]
    session.log.pop()
    step_in(session, LIFE + 1, [3])
    assert judged(session)[0] == {"lost": 1}


@given(chunks())
def test_who_asked_first_need_not_have_opened_the_session(pieces):
    """Of several writers that open it at once one does; others find it, maybe some steps on."""
    session = Session()
    session.history.sights.insert(0, Sight(0.0, LIFE, len(pieces[0])))
    for tokens in pieces:
        session.step(tokens)
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked, found.tokens) == ({}, 0, len(session.log))


@given(chunks())
def test_two_acknowledged_chunks_cannot_have_one_place(pieces):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    rival = session.send([999] * len(pieces[1]), len(pieces[0]))
    session.answer(rival, before=pieces[0], position=len(pieces[0]) + len(pieces[1]))
    wrongs, found = judged(session)
    assert (
        f"{len(pieces[1])} acknowledged tokens are lost: other tokens stand in their place" in found.notes
    )
    assert wrongs["lost"] >= len(pieces[1])  # what the toy forgets may explain a later reply, too


@settings(max_examples=20)
@given(chunks())
def test_a_session_that_was_resumed_is_checked_by_position_only(pieces):
    session = Session()
    session.history.sights = [Sight(0.0, LIFE, 40)]
    session.log = list(range(600, 640))
    attempt = session.send(pieces[0], 40)
    session.log += pieces[0]
    session.answer(attempt)
    wrongs, found = judged(session)
    assert (wrongs, found.unchecked, found.tokens) == ({}, len(pieces[0]), 0)


@given(chunks(), st.data())
def test_a_record_that_begins_in_the_middle_is_no_fault(pieces, data):
    """Another client, whose record is not there, may have opened the session."""
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    place = place_of(data, len(pieces))
    session.history.sights.clear()
    del session.history.attempts[: place + 1]
    wrongs, found = judged(session)
    assert wrongs == {}
    assert found.unchecked == sum(len(tokens) for tokens in pieces[place + 1 :])


@given(chunks())
def test_tokens_open_no_session(pieces):
    session = Session()
    session.history.sights.clear()
    for tokens in pieces:
        session.step(tokens)
    session.look()  # which shows that it is there, not who opened it
    assert judged(session)[0] == {"unopened": len(pieces[0])}
    session.history.openings.append(0.5)  # a request without a reply, which may have opened it
    assert judged(session)[0] == {}


@given(chunks(), st.data(), st.booleans())
def test_tokens_accepted_after_a_deletion_are_unopened(pieces, data, is_named):
    session = Session()
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        session.step(tokens)
        if index == place:
            sent_s = session.now()
            session.history.deletions.append(Deletion(sent_s, LIFE if is_named else 0, session.now()))
    assert judged(session)[0] == {"unopened": sum(map(len, pieces[place + 1 :]))}


@given(chunks(), chunks())
def test_a_late_copy_of_the_first_chunk_that_brings_a_session_back_is_unopened(pieces, others):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    session.history.deletions.append(Deletion(session.now(), LIFE, session.now()))
    session.log = []
    for tokens in others:
        attempt = Attempt(session.now(), np.array(tokens), len(session.log), 0)
        session.history.attempts.append(attempt)
        session.log += tokens
        session.answer(attempt)
        attempt.reply.incarnation = LIFE + 1
    assert judged(session)[0] == {"unopened": len(others[0])}
