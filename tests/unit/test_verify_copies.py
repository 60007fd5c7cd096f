"""Copies: what they had consumed before is in the record of another session, and outputs follow from it."""

import numpy as np
import pytest

from holdfast.history_digest import INITIAL, digest_after
from holdfast.verify.chain import check, origins_of
from holdfast.verify.session_history import Sight
from tests.support.judged_sessions import LIFE, Session, Toy, outputs_after

BEFORE, AFTER = [1, 2, 3], [4, 5]


def digest(tokens):
    return digest_after(INITIAL, np.array(tokens))


def copied(before, *, shown=None):
    """Returns a session that was copied after some tokens, and stepped; it may show what others give."""
    copy = Session()
    copy.history.sights[:] = [Sight(copy.now(), LIFE, len(before), digest(before), is_copy=True)]
    copy.log = [*before]
    attempt = copy.send(AFTER, len(before))
    copy.log += AFTER
    copy.answer(attempt)
    attempt.reply.digest = digest([*before, *AFTER])
    if shown is not None:
        attempt.reply.outputs = outputs_after(shown, AFTER)
    return copy


def source():
    session = Session(digests=True)
    session.step(BEFORE)
    session.step([9])
    return session


@pytest.mark.parametrize("is_right", [True, False])
def test_outputs_of_a_copy_are_held_against_its_source(is_right):
    copy = copied(BEFORE, shown=None if is_right else [7, 7, 7])
    found = check(copy.history, Toy(), origins=origins_of([copy.history, source().history]))
    assert (found.is_good, found.unchecked, found.tokens) == (is_right, 0, len(AFTER))


def test_a_copy_of_a_copy_comes_from_the_first_source():
    first = copied(BEFORE)
    second = copied([*BEFORE, *AFTER])
    histories = [second.history, first.history, source().history]
    found = check(second.history, Toy(), origins=origins_of(histories))
    assert (found.is_good, found.unchecked) == (True, 0)


def test_a_copy_without_a_recorded_source_is_judged_by_digests_alone():
    copy = copied(BEFORE, shown=[7, 7, 7])
    found = check(copy.history, Toy(), origins=origins_of([copy.history]))
    assert (found.is_good, found.unchecked) == (True, len(AFTER))
