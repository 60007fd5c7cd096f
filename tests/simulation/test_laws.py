"""The laws: what they excuse, and what they do not."""

import numpy as np
import pytest

from holdfast.history_digest import run_of
from holdfast.pending import PendingChunk
from service.store.protocol import Writes
from service.store.record import NO_STAMP, KeptReply, encode, new_record
from tests.simulation.laws import belied
from tests.simulation.loop import SimulatedLoop
from tests.simulation.store import Primary

KEY = b"s0"
TOKENS = np.array([7, 8, 9])


@pytest.mark.parametrize(("after_s", "is_belied"), [(-1.0, True), (0.0, False)])
def test_what_a_session_applied_before_it_was_taken_over_expires_with_it(after_s, is_belied):
    loop = SimulatedLoop(1)
    primary = Primary(loop, lambda *_: None)
    opened = new_record(bytes(32), bytes(8))
    digest = run_of(TOKENS).after(opened.digest)
    reply = KeptReply(3, 3, opened.digest, digest, b"")
    stepped = opened._replace(position=3, digest=digest, replies=(reply,))
    taken_over = stepped._replace(incarnation=opened.incarnation + 1, replies=())
    expected = NO_STAMP
    for record in (opened, stepped, taken_over):
        assert not primary.commit([Writes([KEY], expected, [encode(record)])], ttl_s=5.0)
        expected = record.stamp
    loop.now_s += 5.0
    assert primary.get(KEY) is None
    not_applied = [(loop.now_s + after_s, "s0", PendingChunk(0, TOKENS))]
    broken = list(belied(not_applied, {"s0": [opened, stepped, taken_over]}, {}, primary.expired_s))
    assert bool(broken) == is_belied
