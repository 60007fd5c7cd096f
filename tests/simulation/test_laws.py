"""The laws: what they excuse, and what they do not."""

import numpy as np
import pytest

from holdfast.history_digest import run_of
from holdfast.pending import PendingChunk
from service.engine.sampling import Options
from service.store.protocol import Writes
from service.store.record import NO_STAMP, KeptReply, encode, new_record
from tests.simulation.copying import Copy, miscopied
from tests.simulation.laws import belied, strayed
from tests.simulation.loop import SimulatedLoop
from tests.simulation.store import Primary
from tests.simulation.talk import Wanted, uninterrupted
from tests.simulation.talking import Talk, misspoken
from tests.support.hash_oracle import hash_of

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


@pytest.mark.parametrize(
    ("asked_s", "heard_s", "is_wrong"),
    [(1000.0, 1000.5, False), (1000.5, 1001.5, False), (1001.5, 1002.0, True), (998.0, 999.0, True)],
)
def test_a_fork_is_what_its_source_was_while_it_was_asked_for(asked_s, heard_s, is_wrong):
    loop = SimulatedLoop(1)
    primary = Primary(loop, lambda *_: None)
    opened, stepped = opened_and_stepped()
    commit(primary, opened, NO_STAMP)
    loop.now_s = 1001.0
    commit(primary, stepped, opened.stamp)
    made = opened._replace(incarnation=opened.incarnation + 1)
    assert not primary.commit([Writes([b"s1"], NO_STAMP, [encode(made)])], ttl_s=5.0)
    copy = Copy("s0", asked_s, heard_s, "s1", made.incarnation, made.position, made.digest)
    assert bool(list(miscopied([copy], primary, str.encode))) == is_wrong


def test_no_copy_has_the_incarnation_or_the_replies_of_its_source():
    primary = Primary(SimulatedLoop(1), lambda *_: None)
    opened, stepped = opened_and_stepped()
    commit(primary, opened, NO_STAMP)
    commit(primary, stepped, opened.stamp)
    assert not primary.commit([Writes([b"s1"], NO_STAMP, [encode(stepped)])], ttl_s=5.0)
    copy = Copy("s0", 0.0, 2000.0, "s1", stepped.incarnation, stepped.position, stepped.digest)
    texts = " ".join(text for _, text in miscopied([copy], primary, str.encode))
    assert "has replies of its source" in texts
    assert "two sessions have one incarnation" in texts


@pytest.mark.parametrize(
    ("change", "is_over", "is_wrong"),
    [
        (lambda given: given, True, False),
        (lambda given: given[:3], False, False),
        (lambda given: given[:3], True, True),
        (lambda given: [*given[:3], *given[2:]], False, True),
        (lambda given: [*given[:2], (given[2][0], (given[2][1] + 1) % 16)], False, True),
    ],
)
def test_a_generation_gives_what_it_gives_without_a_break(change, is_over, is_wrong):
    opened, stepped = opened_and_stepped()
    state = hash_of(TOKENS.tolist())
    stored = {"s0": [opened, stepped._replace(state=np.int64(state).tobytes())]}
    wanted = Wanted(Options(), 5, (), 0, 8)
    given = list(enumerate(uninterrupted(state, 3, [20, 21], wanted), 6))
    talk = Talk("s0", 3, stepped.digest, [20, 21], wanted, change(given), is_over)
    assert bool(list(misspoken([talk], stored))) == is_wrong
