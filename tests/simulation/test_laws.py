"""The laws: what they excuse, and what they do not."""

import numpy as np
import pytest

from holdfast.history_digest import run_of
from holdfast.pending import PendingChunk
from service.store.protocol import Writes
from service.store.record import NO_STAMP, KeptReply, encode, new_record
from tests.simulation.laws import belied, strayed
from tests.simulation.loop import SimulatedLoop
from tests.simulation.store import Primary

KEY = b"s0"
TOKENS = np.array([7, 8, 9])


def opened_and_stepped():
    opened = new_record(bytes(32), bytes(8))
    digest = run_of(TOKENS).after(opened.digest)
    reply = KeptReply(3, 3, opened.digest, digest, b"")
    return opened, opened._replace(position=3, digest=digest, replies=(reply,))


def commit(primary, record, expected):
    assert not primary.commit([Writes([KEY], expected, [encode(record)])], ttl_s=5.0)


@pytest.mark.parametrize(("after_s", "is_belied"), [(-1.0, True), (0.0, False)])
def test_what_a_session_applied_before_it_was_taken_over_expires_with_it(after_s, is_belied):
    loop = SimulatedLoop(1)
    primary = Primary(loop, lambda *_: None)
    opened, stepped = opened_and_stepped()
    taken_over = stepped._replace(incarnation=opened.incarnation + 1, replies=())
    expected = NO_STAMP
    for record in (opened, stepped, taken_over):
        commit(primary, record, expected)
        expected = record.stamp
    loop.now_s += 5.0
    assert primary.get(KEY) is None
    not_applied = [(loop.now_s + after_s, "s0", PendingChunk(0, TOKENS))]
    broken = list(belied(not_applied, {"s0": [opened, stepped, taken_over]}, {}, primary.expired_s))
    assert bool(broken) == is_belied


@pytest.mark.parametrize("is_misplaced", [False, True])
def test_a_record_over_another_history_is_misplaced(is_misplaced):
    """The store compares what it is asked to; that what it is asked is right is another law."""
    primary = Primary(SimulatedLoop(1), lambda *_: None)
    opened, stepped = opened_and_stepped()
    stored = opened._replace(digest=opened.digest + 1) if is_misplaced else opened
    commit(primary, stored, NO_STAMP)
    commit(primary, stepped, stored.stamp)
    assert bool(primary.misplaced) == is_misplaced


def test_a_chunk_goes_where_its_writer_stood():
    opened, stepped = opened_and_stepped()
    stored = {"s0": [opened, stepped]}
    tokens = TOKENS.tolist()
    assert not list(strayed([("s0", 0, opened.digest, tokens)], stored))
    assert list(strayed([("s0", 0, opened.digest + 1, tokens)], stored))
