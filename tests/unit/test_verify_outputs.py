"""Outputs: what they tell where positions are right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.verify.chain import check
from tests.support.judged_sessions import Session, Toy, chunks, judged, outputs_after, place_of


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
