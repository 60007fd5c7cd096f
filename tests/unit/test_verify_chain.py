"""The checker: good histories pass, and every kind of wrong is reported as what it is."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.judged_sessions import Session, chunks, judged, place_of


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
