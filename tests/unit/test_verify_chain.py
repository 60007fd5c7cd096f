"""The checker: good histories pass, and every kind of wrong is reported as what it is.

A toy network and a toy server, which can be told to forget, double, swap or mix up; it then either shows
its true positions, or those that the client expects, so that only the outputs can give it away.
"""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.history_digest import INITIAL, run_of
from holdfast.verify.chain import check
from holdfast.verify.findings import FAULTS
from holdfast.verify.session_history import Attempt, Deletion, Outputs, Reply, SessionHistory, Sight

LIFE = 7


class Toy:
    """h' = 0.7 h + token / 255; the output of a token is h before it, plus the token.

    Args:
        dependence: What its outputs depend on as well, if they do.
    """

    def __init__(self, dependence=None):
        self._dependence = dependence

    def dependence(self, tokens):
        return self._dependence

    def run(self, tokens, initial):
        return ToyRun(tokens, 0.0 if initial is None else float(initial["h"]))


class ToyRun:
    def __init__(self, tokens, h):
        self.outputs, self.states = np.zeros(len(tokens)), [h]
        for index, token in enumerate(tokens):
            self.outputs[index] = h + token
            h = 0.7 * h + token / 255
            self.states.append(h)

    def differences(self, start, outputs):
        expected = self.outputs[start : start + outputs.token_count]
        return float(np.abs(outputs.token_log_probs - expected).max())

    def state_after(self, count):
        return {"h": self.states[count]}


def outputs_after(before, tokens):
    run = ToyRun([*before, *tokens], 0.0)
    return Outputs(len(tokens), token_log_probs=run.outputs[len(before) :].copy())


class Session:
    """What clients record while a server applies chunks to `log`.

    Args:
        digests: Replies show their history digest and no outputs.
    """

    def __init__(self, *, digests=False):
        self.digests = digests
        self.history = SessionHistory()
        self.log = []
        self.time_s = 0.0
        self.shift = 0
        self.history.sights.append(Sight(self.now(), LIFE, 0, is_opening=True))

    def now(self):
        self.time_s += 1.0
        return self.time_s

    def send(self, tokens, position):
        attempt = Attempt(self.now(), np.array(tokens), position, LIFE)
        self.history.attempts.append(attempt)
        return attempt

    def answer(self, attempt, *, before=None, position=None, replayed=False):
        before = self.log[: -len(attempt.tokens)] if before is None else before
        position = len(self.log) + self.shift if position is None else position
        shown = outputs_after(before, attempt.tokens.tolist())
        digest = 0
        if self.digests:
            shown = Outputs(len(attempt.tokens))
            digest = run_of(np.array([*before, *attempt.tokens.tolist()])).after(INITIAL)
        attempt.reply = Reply(self.now(), LIFE, position, replayed, shown, digest)

    def step(self, tokens):
        """One honest step, at the position that the client believes in."""
        attempt = self.send(tokens, self.believed())
        self.log += tokens
        self.answer(attempt)
        return attempt

    def believed(self):
        attempts = self.history.attempts
        return 0 if not attempts else attempts[-1].position + len(attempts[-1].tokens)

    def look(self):
        self.history.sights.append(Sight(self.now(), LIFE, len(self.log) + self.shift))


@st.composite
def chunks(draw):
    """3 to 12 chunks; all tokens of a session differ, so that nothing is wrong and yet looks right."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=12))
    tokens = list(range(1, 256))
    random.Random(draw(st.integers(0, 2**32 - 1))).shuffle(tokens)
    cuts = np.cumsum([0, *sizes])
    return [tokens[start:end] for start, end in itertools.pairwise(cuts)]


def judged(session):
    found = check(session.history, None if session.digests else Toy())
    wrongs = {name: getattr(found, name) for name in FAULTS if getattr(found, name)}
    assert bool(wrongs) == (not found.is_good) == bool(found.notes)
    return wrongs, found


def test_outputs_of_a_model_that_depends_on_more_tell_of_no_loss():
    session = Session()
    session.step([1, 2])
    session.step([3])
    session.log.pop()
    session.shift += 1
    session.step([4, 5, 6])
    assert check(session.history, Toy()).lost == 1
    found = check(session.history, Toy("its neighbours"))
    assert (found.lost, found.wrong, found.dependent, found.is_good) == (0, 0, 3, False)


def place_of(data, count):
    """Draws a chunk that others follow."""
    return data.draw(st.integers(0, count - 2))


@given(chunks(), st.data(), st.booleans())
def test_a_good_history_passes_whatever_its_fates(pieces, data, digests):
    """Retries that are replays, replies that never came, and refusals, where nothing was wrong."""
    session = Session(digests=digests)
    sends = 0
    for tokens in pieces:
        position = len(session.log)
        fate = data.draw(st.sampled_from(["answered", "replayed", "unanswered", "refused", "sent in vain"]))
        attempt = session.send(tokens, position)
        sends += 1
        if fate in ("refused", "sent in vain"):
            attempt.reason = "STORE_UNAVAILABLE" if fate == "refused" else ""
            attempt = session.send(tokens, position)
            sends += 1
        session.log += tokens
        if fate == "replayed":
            attempt = session.send(tokens, position)
            sends += 1
            session.answer(attempt, replayed=True)
        elif fate != "unanswered":
            session.answer(attempt)
    session.look()
    wrongs, found = judged(session)
    assert wrongs == {}
    assert found.requests == sends
    assert found.replies == sum(attempt.reply is not None for attempt in session.history.attempts)
    if digests:
        assert (found.digests, found.tokens) == (found.replies, 0)
    else:
        assert found.largest_difference <= 1e-12
        assert (found.digests, found.unchecked) == (0, 0)


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


@given(st.integers(2, 6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_what_the_last_of_many_broken_streams_applied_is_found(streams, length, rng):
    """Each sent other tokens to the same positions, so there are streams ** length ways to fill them."""
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


@given(chunks(), st.data(), st.booleans(), st.booleans())
def test_a_forgotten_chunk_is_lost(pieces, data, shows_positions, digests):
    session = Session(digests=digests)
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        session.step(tokens)
        if index == place:
            del session.log[-len(tokens) :]
            session.shift = 0 if shows_positions else len(tokens)
    assert judged(session)[0] == {"lost": len(pieces[place])}


@given(chunks(), st.data(), st.booleans(), st.booleans())
def test_a_chunk_applied_again_is_twice(pieces, data, shows_positions, digests):
    session = Session(digests=digests)
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        session.step(tokens)
        if index == place:
            session.log += tokens
            session.shift = 0 if shows_positions else -len(tokens)
    assert judged(session)[0] == {"twice": len(pieces[place])}


@given(chunks(), st.data(), st.booleans(), st.booleans())
def test_chunks_that_changed_places_are_reordered(pieces, data, shows_positions, digests):
    session = Session(digests=digests)
    place = place_of(data, len(pieces))
    for tokens in pieces[:place]:
        session.step(tokens)
    start = len(session.log)
    first, second = pieces[place], pieces[place + 1]
    one, two = session.send(first, start), session.send(second, start + len(first))
    session.log += second
    session.answer(two, position=None if shows_positions else start + len(first) + len(second))
    session.log += first
    session.answer(one, position=None if shows_positions else start + len(first))
    for tokens in pieces[place + 2 :]:
        session.step(tokens)
    wrongs = judged(session)[0]
    assert wrongs.keys() == {"reordered"}
    assert len(second) <= wrongs["reordered"] <= len(first) + len(second)


@given(chunks(), st.data(), st.floats(2e-5, 1.0))
def test_a_changed_float_is_wrong(pieces, data, change):
    session = Session()
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        attempt = session.step(tokens)
        if index == place:
            attempt.reply.outputs.token_log_probs[-1] += change
    wrongs, found = judged(session)
    assert wrongs == {"wrong": len(pieces[place])}
    assert found.largest_difference == pytest.approx(change, rel=1e-3)


@given(chunks(), st.data())
def test_a_token_exchanged_for_another_is_wrong_once(pieces, data):
    """Only the digest can tell, where no outputs are asked for; later digests follow from the wrong one."""
    session = Session(digests=True)
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        attempt = session.send(tokens, len(session.log))
        session.log += [999, *tokens[1:]] if index == place else tokens
        before = session.log[: -len(tokens)]
        session.answer(attempt, before=before)
        if index == place:
            attempt.reply.digest = run_of(np.array(session.log)).after(INITIAL)
    wrongs, found = judged(session)
    assert (wrongs, found.digests) == ({"wrong": len(pieces[place])}, len(pieces))


@given(chunks(), st.data(), st.booleans())
def test_a_reply_of_another_session_is_wrong(pieces, data, is_named):
    """Whether it gives itself away by its name or only by its outputs."""
    session = Session()
    place = place_of(data, len(pieces))
    for index, tokens in enumerate(pieces):
        attempt = session.step(tokens)
        if index == place:
            attempt.reply.outputs = outputs_after([3000], tokens)  # which no tokens here come to
            attempt.reply.is_foreign = is_named
    assert judged(session)[0].get("wrong") == len(pieces[place])


@given(chunks(), st.data())
def test_tokens_that_nobody_sent_are_unexplained(pieces, data):
    session = Session()
    for tokens in pieces:
        session.step(tokens)
    place = place_of(data, len(pieces))
    del session.history.attempts[place]
    assert judged(session)[0] == {"unexplained": len(pieces[place])}


@given(chunks(), st.data(), st.booleans())
def test_a_regression_that_is_healed_is_no_loss(pieces, data, digests):
    session = Session(digests=digests)
    for tokens in pieces:
        session.step(tokens)
    back = sum(len(tokens) for tokens in pieces[: place_of(data, len(pieces)) + 1])
    log, session.log = session.log, session.log[:back]
    refused = session.send([256], len(log))
    refused.reason, refused.expected_position = "STORE_REGRESSED", back
    while len(session.log) < len(log):
        size = data.draw(st.integers(1, 4))
        attempt = session.send(log[len(session.log) :][:size], len(session.log))
        session.log += attempt.tokens.tolist()
        session.answer(attempt)
    session.send([256], len(log))
    session.log.append(256)
    session.answer(session.history.attempts[-1])
    assert judged(session)[0] == {}
    refused.reason = "STORE_UNAVAILABLE"  # the same without the store having said so
    assert judged(session)[0].keys() == {"twice"}


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


def step_in(session, incarnation, tokens):
    attempt = Attempt(session.now(), np.array(tokens), len(session.log), incarnation)
    session.history.attempts.append(attempt)
    session.log += tokens
    session.answer(attempt)
    attempt.reply.incarnation = incarnation


def test_a_takeover_that_was_asked_for_before_the_opening_comes_after_it():
    session = Session(digests=True)
    session.history.sights = [
        Sight(1.0, LIFE + 1, 0, INITIAL, took_over=True, heard_s=4.0),
        Sight(2.0, LIFE, 0, INITIAL, is_opening=True, heard_s=5.0),
    ]
    session.time_s = 5.0
    step_in(session, LIFE + 1, [1, 2, 3])
    assert judged(session)[0] == {}


@pytest.mark.parametrize(("asked_s", "lost"), [([3.5], 0), ([], 2), ([60.0], 2)])
def test_a_takeover_whose_answer_did_not_come_is_no_new_beginning(asked_s, lost):
    session = Session(digests=True)
    session.step([1, 2])
    session.history.takeovers = asked_s
    digest = session.history.attempts[-1].reply.digest
    session.history.sights.append(Sight(session.now(), LIFE + 1, 2, digest))
    step_in(session, LIFE + 1, [3])
    assert judged(session)[0] == ({"lost": lost} if lost else {})


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
