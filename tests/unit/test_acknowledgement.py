"""Levels above `memory` in the engine: nothing is answered unconfirmed, and a retry is a replay."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import AckLevelNotReached, SessionDeleted
from service.engine.asked import Asked
from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Opening, Sessions
from service.store.protocol import AckLevel
from service.store.record import decode
from tests.support.fakes import (
    AccumulatorModel,
    CountingObserver,
    FakeModels,
    MemoryStore,
    encode_totals,
    open_session,
)
from tests.unit.test_engine_rows import Sent

REPLICATED = AckLevel.REPLICATED


def submit(engine, session, tokens, position, level=REPLICATED, **claim):
    future = asyncio.get_running_loop().create_future()
    raw = np.array(tokens, np.int64).tobytes()
    asked = Asked("ids", len(tokens), model_name="sum", ack_level=level)
    engine.submit(
        Chunk(session.encode(), asked, raw, lambda _, got: future.set_result(got), position, **claim)
    )
    return future


async def send(engine, *arguments, **options):
    """Returns position, totals, whether it is a replay and the level; or the reason of a refusal."""
    outcome = await asyncio.wait_for(submit(engine, *arguments, **options), 5)
    if isinstance(outcome, Reply):
        totals = np.frombuffer(outcome.outputs, np.float32).tolist()
        return outcome.position, totals, outcome.replayed, outcome.ack_level
    return outcome.reason


async def test_a_commit_is_answered_once_it_is_confirmed(start, store):
    engine = start("s")
    assert await send(engine, "s", [1, 2], 0) == (2, [1, 3], False, REPLICATED)
    assert store.confirmed == [(b"s", REPLICATED)]


async def test_level_memory_asks_for_no_confirmation(start, store):
    engine = start("s")
    assert await send(engine, "s", [1], 0, AckLevel.MEMORY) == (1, [1], False, AckLevel.MEMORY)
    assert await send(engine, "s", [1], 0, None) == (1, [1], True, AckLevel.MEMORY)
    assert store.confirmed == []


async def test_the_default_of_the_server_holds_where_nothing_is_asked(start, store):
    engine = start("s", ack_level=REPLICATED)
    assert await send(engine, "s", [1], 0, None) == (1, [1], False, REPLICATED)
    assert await send(engine, "s", [2], 1, AckLevel.MEMORY) == (2, [3], False, AckLevel.MEMORY)


async def test_what_is_not_confirmed_is_replayed_and_confirmed_itself(start, store, observer, model):
    engine = start("s")
    store.unconfirmed.add(b"s")
    assert await send(engine, "s", [1], 0) == "ACK_LEVEL_NOT_REACHED"
    assert await send(engine, "s", [1], 0) == "ACK_LEVEL_NOT_REACHED"
    store.unconfirmed.clear()
    assert await send(engine, "s", [1], 0) == (1, [1], True, REPLICATED)
    assert store.confirmed == [(b"s", REPLICATED)]
    assert model.batch_sizes == [1]
    assert (observer.counts["answers"], observer.counts["acknowledged"]) == (1, 1)


async def test_a_reconnect_between_commit_and_confirmation_does_not_confirm(start, store):
    engine = start("s")
    commit = store.commit

    async def commit_and_reconnect(*arguments):
        refusals = await commit(*arguments)
        store.epoch += 1
        return refusals

    store.commit = commit_and_reconnect
    assert await send(engine, "s", [1], 0) == "ACK_LEVEL_NOT_REACHED"
    assert await send(engine, "s", [1], 0) == (1, [1], True, REPLICATED)


async def test_a_replay_is_not_confirmed_from_a_record_read_before_a_reconnect(start, store):
    engine = start("s")
    load = store.load

    async def load_and_reconnect(keys):
        found = await load(keys)
        store.load = load
        store.epoch += 1
        store.records.clear()  # the server behind the new connection does not have it
        return found

    await send(engine, "s", [1], 0)
    store.load = load_and_reconnect
    assert await send(engine, "s", [1], 0, incarnation=5) == "SESSION_LOST"


async def test_an_unknown_outcome_is_confirmed_in_the_epoch_it_was_found_out_in(start, store):
    engine = start("s")
    commit = store.commit

    async def commit_and_lose(*arguments):
        store.epoch += 1
        store.lose_reply, store.commit = True, commit
        return await commit(*arguments)

    store.commit = commit_and_lose
    assert await send(engine, "s", [7], 0) == (1, [7], False, REPLICATED)


async def test_a_level_that_the_store_cannot_give_is_refused_before_it_runs(start, model):
    engine = start("sab")
    assert await send(engine, "s", [1], 0, AckLevel.FSYNCED) == "ACK_LEVEL_UNSUPPORTED"
    sent = Sent("ab", [1, 2], [0, 0])
    sent.rows.asked = sent.rows.asked._replace(ack_level=AckLevel.FSYNCED)
    engine.submit_rows(sent.rows)
    assert await asyncio.wait_for(sent.done, 5) == ["ACK_LEVEL_UNSUPPORTED"] * 2
    assert model.batch_sizes == []


async def test_rows_of_a_block_are_confirmed_one_by_one(start, store):
    engine = start("abc", ack_level=REPLICATED)
    store.unconfirmed.add(b"b")
    sent = Sent("abc", [1, 2, 3], [0] * 3)
    engine.submit_rows(sent.rows)
    assert await asyncio.wait_for(sent.done, 5) == [
        (1, [1], False),
        "ACK_LEVEL_NOT_REACHED",
        (1, [3], False),
    ]
    store.unconfirmed.clear()
    again = Sent("abc", [1, 2, 3], [0] * 3)
    engine.submit_rows(again.rows)
    assert await asyncio.wait_for(again.done, 5) == [(1, [1], True), (1, [2], True), (1, [3], True)]


async def test_others_commit_while_a_confirmation_is_under_way(start, store):
    engine, hold = start(["slow", "quick"]), asyncio.Event()
    confirm = store.confirm

    async def held(*arguments):
        await hold.wait()
        return await confirm(*arguments)

    store.confirm = held
    slow = submit(engine, "slow", [1], 0)
    behind = submit(engine, "slow", [2], 1, AckLevel.MEMORY)
    try:
        for position in range(5):
            assert (await send(engine, "quick", [1], position, AckLevel.MEMORY))[0] == position + 1
        assert not slow.done()
        assert not behind.done(), "it overtook the chunk before it"
    finally:
        hold.set()
    assert [(await future).position for future in (slow, behind)] == [1, 2]


async def test_stop_waits_for_confirmations(start, store):
    engine, commit, confirm = start("s"), store.commit, store.confirm
    begun, stopping = asyncio.Event(), asyncio.Event()

    async def slow_commit(*arguments):
        begun.set()
        await stopping.wait()
        return await commit(*arguments)

    async def slow_confirm(*arguments):
        await turn(50)
        return await confirm(*arguments)

    store.commit, store.confirm = slow_commit, slow_confirm
    future = submit(engine, "s", [1], 0)
    await asyncio.wait_for(begun.wait(), 5)
    stop = asyncio.create_task(engine.stop())
    await turn(50)  # now it waits for the commit, and the confirmation has not begun
    stopping.set()
    await asyncio.wait_for(stop, 5)
    assert future.result().position == 1


async def turn(count):
    """Lets everything that can go on do so, for some turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("fault", ["unconfirmed", "reconnect"])
async def test_opening_taking_over_and_deleting_are_confirmed(start, store, fault):
    engine = start()
    models = FakeModels(AccumulatorModel())
    sessions = Sessions(models, store, engine, ttl_s=0, ack_level=REPLICATED)
    load = store.load

    async def load_and_reconnect(keys):
        store.epoch += fault == "reconnect"
        return await load(keys)

    async def fails(call):
        store.unconfirmed.update({b"s"} if fault == "unconfirmed" else ())
        store.load = load_and_reconnect
        with pytest.raises(AckLevelNotReached):
            await call()
        store.unconfirmed.clear()
        store.load = load
        return await call()

    opened = await fails(lambda: sessions.open(b"s", Opening("sum")))
    taken = await fails(lambda: sessions.open(b"s", Opening("", take_over=True)))
    assert taken.record.incarnation != opened.record.incarnation
    assert await fails(lambda: sessions.delete(b"s", taken.record.incarnation)) == 0
    assert store.confirmed == [(b"s", REPLICATED)] * 3


async def test_a_takeover_keeps_all_but_the_incarnation_and_fences_every_replica(start, store):
    first, second = start(), start()
    model = FakeModels(AccumulatorModel())
    sessions = Sessions(model, store, second, ttl_s=0)
    old = (await sessions.open(b"s", Opening("sum"))).record.incarnation
    for position in range(2):
        await send(first, "s", [3], position, acknowledged=0, incarnation=old)
    before = decode(store.records[b"s"])
    taken = await sessions.open(b"s", Opening("sum", take_over=True))
    after = decode(store.records[b"s"])
    assert taken.is_resumed
    assert taken.record.incarnation not in (0, old)
    assert after == taken.record == before._replace(incarnation=taken.record.incarnation)
    late = [await send(engine, "s", [4], 2, incarnation=old) for engine in (first, second)]
    assert late == ["SESSION_DELETED"] * 2
    new = {"acknowledged": 0, "incarnation": taken.record.incarnation}
    assert (await send(first, "s", [3], 1, **new))[:3] == (2, [6], True)
    assert (await send(first, "s", [5], 2, **new))[:3] == (3, [11], False)


async def test_of_two_takeovers_at_once_the_later_one_holds(start, store):
    sessions = Sessions(FakeModels(AccumulatorModel()), store, start(), ttl_s=0)
    await sessions.open(b"s", Opening("sum"))
    commit = store.commit

    async def overtaken(*arguments):
        store.commit = commit
        await sessions.open(b"s", Opening("sum", take_over=True))
        return await commit(*arguments)

    store.commit = overtaken
    taken = await sessions.open(b"s", Opening("sum", take_over=True))
    assert decode(store.records[b"s"]).incarnation == taken.record.incarnation
    with pytest.raises(SessionDeleted):
        await sessions.delete(b"s", 7)


class Unreliable(MemoryStore):
    """Confirms, reconnects, loses replies and forgets nothing, as it is told to."""

    def __init__(self, faults):
        super().__init__()
        self.faults = iter(faults)

    async def commit(self, *arguments):
        fault = next(self.faults, None)
        self.lose_reply = fault == "reply"
        try:
            return await super().commit(*arguments)
        finally:
            self.epoch += fault == "reconnect"

    async def confirm(self, keys, level, epoch):
        if next(self.faults, None) == "late":
            return dict.fromkeys(range(len(keys)), AckLevelNotReached("not yet", retry_after_s=0.1))
        return await super().confirm(keys, level, epoch)


SESSIONS = "abc"
LEVELS = st.sampled_from([AckLevel.MEMORY, AckLevel.REPLICATED])
STREAMS = st.fixed_dictionaries(
    {name: st.lists(st.tuples(st.integers(1, 200), LEVELS), max_size=8) for name in SESSIONS}
)


@settings(max_examples=60, deadline=None)
@given(STREAMS, st.lists(st.sampled_from(["fine", "late", "reconnect", "reply"]), max_size=40))
def test_whatever_is_not_confirmed_a_retry_gives_the_same_and_nothing_twice(streams, faults):
    asyncio.run(run_streams(streams, Unreliable(faults)))


async def run_streams(streams, store):
    for session in streams:
        open_session(store, session)
    engine = Driver(
        FakeModels(AccumulatorModel()), store, CountingObserver().count, EngineLimits(), encode_totals
    )
    engine.start()

    async def write(session, tokens):
        total = 0
        for position, (token, level) in enumerate(tokens):
            total += token
            while True:
                outcome = await send(engine, session, [token], position, level)
                if outcome not in ("ACK_LEVEL_NOT_REACHED", "STORE_UNAVAILABLE"):
                    break
            assert (*outcome[:2], outcome[3]) == (position + 1, [total], level)
            if level:
                assert (session.encode(), level) in store.confirmed
                store.confirmed.clear()

    try:
        for session, tokens in streams.items():
            await write(session, tokens)
    finally:
        await engine.stop()
    for session, tokens in streams.items():
        record = decode(store.records[session.encode()])
        state = np.frombuffer(record.state, np.float32).tolist()
        assert state == [sum(token for token, _ in tokens), len(tokens)]
