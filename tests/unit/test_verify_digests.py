"""History digests: what they tell without outputs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from holdfast.history_digest import INITIAL, run_of
from tests.support.judged_sessions import Session, chunks, judged, place_of


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
