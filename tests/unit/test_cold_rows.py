"""Records that are read together make sessions hot as they would one by one."""

from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import StoreUnavailable
from service.engine import heat
from service.engine.asked import Asked
from service.engine.effects import Commit, Load, Run, Settle
from service.engine.records import make_records
from service.engine.rows import NOT_GIVEN, Message, Rows, to_tokens, token_sums
from service.store.record import KeptReply, Record, encode
from tests.scenarios.world import Replica, World
from tests.support.fakes import AccumulatorModel
from tests.unit.test_core import submit

SUM = AccumulatorModel.fingerprint
ONE_BY_ONE = 1 << 30


@dataclass
class Session:
    """What is stored of a session, and what its row claims."""

    stored: object
    position: int
    acknowledged: int
    incarnation: int


def record(position, replies=1, **odd):
    """Returns the record of a session that has consumed so many tokens, each of them 1."""
    state = np.array([position, position], np.float32).tobytes()
    kept = tuple(
        KeptReply(end, 1, 100 + end - 1, 100 + end, np.float32(end).tobytes())
        for end in range(max(1, position - replies + 1), position + 1)
    )
    return Record(7, position, SUM, state, kept, digest=100 + position, nonce=-3)._replace(**odd)


def broken(encoded, place):
    changed = bytearray(encoded)
    changed[place % len(changed)] ^= 16
    return bytes(changed)


live = st.builds(record, st.integers(0, 3), st.integers(0, 2))
usual = st.builds(record, st.integers(1, 3))
odd = st.one_of(
    st.builds(record, st.integers(0, 3), deleted=st.just(True), state=st.just(b""), replies=st.just(0)),
    st.builds(record, st.integers(1, 3), quarantine_reason=st.just("held")),
    st.builds(record, st.integers(1, 3), fingerprint=st.just(b"?" * 32)),
    st.builds(record, st.integers(1, 3), state=st.just(bytes(12))),
    st.builds(record, st.integers(1, 3), incarnation=st.just(2**53)),
)
stored = st.one_of(
    usual.map(encode),
    usual.map(encode),
    usual.map(encode),
    live.map(encode),
    odd.map(encode),
    st.builds(broken, usual.map(encode), st.integers(0, 200)),
    st.none(),
    st.just(b""),
    st.just(StoreUnavailable("down", retry_after_s=0.1)),
)
sessions = st.lists(
    st.builds(
        Session,
        stored,
        st.sampled_from([NOT_GIVEN, 0, 1, 2, 3, 4]),
        st.sampled_from([NOT_GIVEN, 0, 1, 2]),
        st.sampled_from([0, 0, 0, 7, 8]),
    ),
    min_size=1,
    max_size=30,
)


def outcomes(drawn, together):
    """Returns what becomes of a message to these sessions, and what is known of them then."""
    with pytest.MonkeyPatch.context() as patch:
        if not together:
            patch.setattr(heat, "ARRAYS_PAY", ONE_BY_ONE)
        else:
            patch.setattr(heat, "ARRAYS_PAY", 1)
        world = World()
        replica = Replica(world.model)
        found = {f"session-{place}".encode(): one.stored for place, one in enumerate(drawn)}
        answers = [None] * len(drawn)

        def reply(rows, error):
            for place, number in enumerate(rows.numbers.tolist()):
                assert answers[number] is None
                if error is not None:
                    answers[number] = type(error), error.message
                else:
                    stamp, output = rows.next_stamps[place].tolist(), rows.outputs[place].tobytes()
                    answers[number] = stamp, output, rows.is_replayed

        replica.core.submit_rows(message(list(found), drawn, reply), world.now_s)
        committed = {}
        perform(world, replica, found, committed)
        cache = replica.core.cache
        hot = {key: known(cache, slot) for key, slot in cache.slots.items()}
        return answers, committed, hot, cache.held_bytes


def message(keys, drawn, reply):
    asked, count = Asked("ids", 1, model_name="sum"), len(keys)
    tokens = to_tokens(asked, np.ones(count, np.int64).tobytes(), count)
    positions, acknowledged, incarnations = (
        np.array([getattr(one, name) for one in drawn], np.int64)
        for name in ("position", "acknowledged", "incarnation")
    )
    return Rows(
        asked,
        keys,
        tokens,
        token_sums(tokens),
        positions,
        acknowledged,
        incarnations,
        message=Message(reply, count),
        numbers=np.arange(count),
    )


def perform(world, replica, found, committed):
    core = replica.core
    left = core.next(world.now_s, replica.epoch)
    while left or core.is_ready:
        if not left:
            left = core.next(world.now_s, replica.epoch)
            continue
        effect = left.pop(0)
        match effect:
            case Load():
                effect.began_s, effect.epoch = world.now_s, replica.epoch
                records = [found[key] for key in effect.keys]
                left += core.loaded(effect, records, replica.epoch, world.now_s)
            case Run():
                left += world.run(replica, effect, [])
            case Commit():
                effect.began_s, effect.epoch = world.now_s, replica.epoch
                for rows in effect.rows:
                    make_records(rows)
                    committed.update(zip(rows.keys, map(bytes, rows.writes.records), strict=True))
                left += core.committed(effect, {}, replica.epoch, world.now_s)
            case Settle():
                effect.rows.settle(effect.error)


def known(cache, slot):
    row = Rows(None, [], *[None] * 3)
    cache.look_up(row, np.array([slot]))
    cache.gather(row)
    tail = cache.tail(slot) if cache.knows_all(slot, 0.0) else None
    return row.stamps.tolist(), row.nonces.tolist(), row.states.tobytes(), cache.verified_s(slot), tail


@given(sessions)
def test_any_mixture_of_records_fares_as_its_records_do_one_by_one(drawn):
    assert outcomes(drawn, together=True) == outcomes(drawn, together=False)


def test_sessions_that_are_stored_alike_are_not_decoded_one_by_one(monkeypatch):
    """Else the test above would compare one way with itself."""
    monkeypatch.setattr(heat, "decode", None)
    drawn = [Session(encode(record(2)), 2, NOT_GIVEN, 0) for _ in range(heat.ARRAYS_PAY)]
    answers, *_ = outcomes(drawn, together=True)
    assert [stamp[1] for stamp, *_ in answers] == [3] * len(drawn)


def test_what_breaks_while_sessions_are_made_hot_together_is_answered():
    world = World()
    replica = Replica(world.model)
    names = ascii_lowercase[: heat.ARRAYS_PAY]
    found = {name.encode(): encode(record(1)) for name in names}
    answers = []
    put_rows = replica.core.cache.put_rows
    replica.core.cache.put_rows = None
    for name in names:
        submit(replica.core, name, answers)
    [load] = replica.core.next(world.now_s, replica.epoch)
    load.began_s, load.epoch = world.now_s, replica.epoch
    with pytest.raises(TypeError):
        replica.core.loaded(load, list(found.values()), replica.epoch, world.now_s)
    for effect in replica.core.broke(load, world.now_s):
        effect.rows.settle(effect.error)
    assert sorted(answers) == [(name, "INTERNAL") for name in names]
    replica.core.cache.put_rows = put_rows
    answers.clear()
    for name in names:
        submit(replica.core, name, answers)
    perform(world, replica, found, {})
    assert sorted(answers) == [(name, 2) for name in names]
