"""The order of lives that began at the same time."""

import numpy as np

from holdfast.history_digest import INITIAL, run_of
from holdfast.verify.session_history import Attempt, Deletion, Sight
from tests.support.judged_sessions import LIFE, Session, judged, step_in


def test_a_takeover_that_was_asked_for_before_the_opening_comes_after_it():
    session = Session(digests=True)
    session.history.sights = [
        Sight(1.0, LIFE + 1, 0, INITIAL, took_over=True, heard_s=4.0),
        Sight(2.0, LIFE, 0, INITIAL, is_opening=True, heard_s=5.0),
    ]
    session.time_s = 5.0
    step_in(session, LIFE + 1, [1, 2, 3])
    assert judged(session)[0] == {}


def test_three_lives_that_began_at_the_same_time_are_put_in_order():
    session = Session(digests=True)
    digest = run_of(np.array([1])).after(INITIAL)
    session.history.sights = [
        Sight(1.0, LIFE + 2, 1, digest, took_over=True, heard_s=8.0),
        Sight(2.0, LIFE + 1, 0, INITIAL, took_over=True, heard_s=6.0),
        Sight(3.0, LIFE, 0, INITIAL, is_opening=True, heard_s=5.0),
    ]
    session.time_s = 6.0
    step_in(session, LIFE + 1, [1])
    step_in(session, LIFE + 2, [2])
    assert judged(session)[0] == {}


def test_of_two_takeovers_that_found_the_same_that_which_was_left_there_was_first():
    session = Session(digests=True)
    session.step([1])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights += [
        Sight(4.0, LIFE + 2, 1, digest, took_over=True, heard_s=9.0),
        Sight(5.0, LIFE + 1, 1, digest, took_over=True, heard_s=9.0),
        Sight(8.0, LIFE + 1, 1, digest),
    ]
    session.time_s = 6.0
    step_in(session, LIFE + 2, [2])
    assert judged(session)[0] == {}


def test_of_two_takeovers_at_the_same_time_that_which_found_less_was_first():
    session = Session(digests=True)
    session.step([1])
    digest = session.history.attempts[-1].reply.digest
    after = run_of(np.array([2])).after(digest)
    session.history.sights += [
        Sight(4.0, LIFE + 2, 2, after, took_over=True, heard_s=9.0),
        Sight(5.0, LIFE + 1, 1, digest, took_over=True, heard_s=9.0),
    ]
    session.time_s = 9.0
    session.history.attempts.append(Attempt(6.0, np.array([2]), 1, LIFE + 1))  # its reply was lost
    session.log.append(2)
    step_in(session, LIFE + 2, [3])
    assert judged(session)[0] == {}


def test_a_life_began_no_earlier_than_it_was_asked_for():
    """A chunk sent long before, to whatever life there is, was late in finding it."""
    session = Session(digests=True)
    late = Attempt(session.now(), np.array([9]), None, 0)
    session.history.attempts.append(late)
    step_in(session, LIFE, [1, 2])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 1, 2, digest, took_over=True))
    step_in(session, LIFE + 1, [3, 4])
    session.history.deletions.append(Deletion(session.now(), LIFE + 1, session.now()))
    session.history.sights.append(Sight(session.now(), LIFE + 2, 0, INITIAL, is_opening=True))
    session.log = []
    step_in(session, LIFE + 2, [5])
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 3, 1, digest, took_over=True))
    session.log.append(9)
    session.answer(late)
    late.reply.incarnation = LIFE + 3
    assert judged(session)[0] == {}


def test_a_life_that_was_still_found_when_another_was_known_comes_after_that_one():
    """Whoever took it over heard nothing, and it was seen where the other one was taken over, too."""
    session = Session(digests=True)
    session.step([1, 2])
    digest = session.history.attempts[-1].reply.digest
    session.history.takeovers = [4.0]
    session.history.sights += [
        Sight(4.0, LIFE + 1, 2, digest, took_over=True, heard_s=6.0),
        Sight(7.0, LIFE + 2, 2, digest, heard_s=8.0),
    ]
    late = Attempt(5.0, np.array([3]), 2, 0)  # sent before that was known
    session.history.attempts.append(late)
    session.time_s = 8.0
    session.log.append(3)
    session.answer(late)
    late.reply.incarnation = LIFE + 2
    session.history.sights.append(
        Sight(session.now(), LIFE + 3, 3, late.reply.digest, took_over=True, heard_s=session.now())
    )
    step_in(session, LIFE + 3, [4])
    assert judged(session)[0] == {}


def test_a_chunk_sent_long_before_was_late_in_finding_a_life_that_nobody_heard_begin():
    session = Session(digests=True)
    session.step([1, 2])
    digest = session.history.attempts[-1].reply.digest
    session.history.takeovers = [4.0]
    late = Attempt(4.0, np.array([3]), 2, 0)
    session.history.attempts.append(late)
    session.history.sights += [
        Sight(5.0, LIFE + 1, 2, digest, took_over=True, heard_s=6.0),
        Sight(7.0, LIFE + 2, 2, digest, heard_s=8.0),
    ]
    session.time_s = 8.0
    session.log.append(3)
    session.answer(late)
    late.reply.incarnation = LIFE + 2
    step_in(session, LIFE + 2, [4])
    assert judged(session)[0] == {}
