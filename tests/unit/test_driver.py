import asyncio
import random

import numpy as np

from service.engine.asked import Asked
from service.engine.cache import ENTRY_BYTES
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Sessions
from service.store.record import decode
from tests.support.fakes import FakeModels


async def send(engine, session, tokens, position=None, **claim):
    """Returns the answer: position and the running totals, or the reason of the refusal."""
    outcome = await asyncio.wait_for(submit(engine, session, tokens, position, **claim), 5)
    if isinstance(outcome, Reply):
        return outcome.position, np.frombuffer(outcome.outputs, np.float32).tolist(), outcome.replayed
    return outcome.reason


def submit(engine, session, tokens, position=None, **claim):
    future = asyncio.get_running_loop().create_future()
    raw = np.array(tokens, np.int64).tobytes()
    asked = Asked("ids", len(tokens), model_name="sum")
    engine.submit(
        Chunk(session.encode(), asked, raw, lambda _, got: future.set_result(got), position, **claim)
    )
    return future


async def test_streamed_equals_offline(start):
    engine = start("s")
    assert await send(engine, "s", [1, 2, 3], 0) == (3, [1, 3, 6], False)
    assert await send(engine, "s", [4], 3) == (4, [10], False)


async def test_a_chunk_opens_no_session(start, store):
    engine = start()
    outcomes = [await send(engine, "s", [1], position) for position in (None, 0, 1)]
    assert outcomes == ["SESSION_NOT_FOUND", "SESSION_NOT_FOUND", "SESSION_LOST"]
    assert store.records == {}


async def test_a_late_copy_of_the_first_chunk_does_not_bring_a_deleted_session_back(start, model, store):
    engine = start("s")
    sessions = Sessions(FakeModels(model), store, engine, ttl_s=60)
    await send(engine, "s", [1], 0)
    await sessions.delete(b"s", 0)
    assert [await send(engine, "s", [1], position) for position in (0, None)] == ["SESSION_DELETED"] * 2
    assert decode(store.records[b"s"]).deleted


async def test_a_retry_is_answered_from_the_record_and_the_model_not_run(start, model):
    engine = start("s")
    first = await send(engine, "s", [1, 2], 0)
    runs = len(model.batch_sizes)
    assert await send(engine, "s", [1, 2], 0) == (*first[:2], True)
    assert len(model.batch_sizes) == runs


async def test_every_unacknowledged_chunk_can_be_sent_again_on_another_replica(start):
    engine, other = start("s"), start()
    sent = [await send(engine, "s", [n], n - 1, acknowledged=0) for n in range(1, 5)]
    again = [await send(other, "s", [n], n - 1, acknowledged=0) for n in range(1, 5)]
    assert [reply[:2] for reply in again] == [reply[:2] for reply in sent]
    assert all(replayed for *_, replayed in again)


async def test_a_session_moves_between_replicas_without_loss(start):
    engines = [start("s"), start(), start()]
    total = 0
    for position in range(30):
        total += position
        reply = await send(random.Random(position).choice(engines), "s", [position], position)
        assert reply == (position + 1, [total], False)


async def test_two_writers_one_wins_each_position(start, store):
    one, two = start("s"), start()
    await send(one, "s", [1], 0)
    await send(two, "s", [1], 0)
    outcomes = await asyncio.gather(send(one, "s", [2], 1), send(two, "s", [3], 1))
    assert outcomes.count("POSITION_CONFLICT") == 1


async def test_a_paused_replica_cannot_answer_from_its_old_memory(start):
    old, new = start("s"), start()
    await send(old, "s", [1], 0)
    await send(new, "s", [2], 1)
    assert await send(old, "s", [2], 1) == (2, [3], True)
    assert await send(old, "s", [5], 2) == (3, [8], False)


async def test_an_unknown_commit_outcome_is_found_out(start, store):
    engine = start("s")
    store.lose_reply = True
    assert await send(engine, "s", [7], 0) == (1, [7], False)


async def test_a_store_that_is_down_fails_the_batch_and_is_used_again(start, store):
    engine = start("s")
    await send(engine, "s", [1], 0)
    store.is_available = False
    assert await send(engine, "s", [2], 1) == "STORE_UNAVAILABLE"
    store.is_available = True
    assert await send(engine, "s", [2], 1) == (2, [3], False)


async def test_the_model_raises_and_the_next_batch_works(start, model, caplog):
    engine = start("s")
    await send(engine, "s", [1], 0)
    model.fail_with = RuntimeError("broken")
    assert await send(engine, "s", [2], 1) == "MODEL_FAILED"
    assert not caplog.records  # it is no bug of ours
    model.fail_with = None
    assert await send(engine, "s", [2], 1) == (2, [3], False)


async def test_a_stage_that_fails_is_answered_and_the_next_chunk_runs(start, store):
    """In a way that nobody foresaw: what a store raises by itself is a ServiceError."""
    engine = start("s")
    await send(engine, "s", [1], 0)
    commit, store.commit = store.commit, None
    assert await send(engine, "s", [2], 1) == "INTERNAL"
    store.commit = commit
    assert await send(engine, "s", [2], 1) == (2, [3], False)


async def test_a_state_that_is_not_finite_fails_its_own_row_only(start):
    engine = start(["bad", "good"])
    outcomes = await asyncio.gather(send(engine, "bad", [255], 0), send(engine, "good", [1], 0))
    assert outcomes == ["STATE_NOT_FINITE", (1, [1], False)]
    assert await send(engine, "bad", [4], 0) == (1, [4], False)


async def test_a_bad_token_fails_nobody_else(start):
    engine = start(["bad", "good"])
    outcomes = await asyncio.gather(send(engine, "bad", [256], 0), send(engine, "good", [1], 0))
    assert outcomes == ["INVALID_REQUEST", (1, [1], False)]


async def test_a_batch_runs_while_as_many_sessions_as_it_takes_are_loaded(start, store):
    cold = [f"cold{number}" for number in range(8)]
    engine = start(["hot", *cold], max_batch=8)
    await send(engine, "hot", [1], 0)
    load, may_load = store.load, asyncio.Event()

    async def load_late(keys):
        await may_load.wait()
        return await load(keys)

    store.load = load_late
    loaded = [submit(engine, session, [1], 0) for session in cold]
    await asyncio.sleep(0.01)
    try:
        assert await send(engine, "hot", [2], 1) == (2, [3], False)
        assert not any(answer.done() for answer in loaded)
    finally:
        may_load.set()
    assert [answer.position for answer in await asyncio.gather(*loaded)] == [1] * 8


async def test_whoever_is_answered_goes_on_before_that_is_counted(start, observer):
    said, count = [], observer.count

    def count_late(report):
        said.append(f"counted {report.step_count}")
        count(report)

    observer.count = count_late
    engine = start("s")
    await submit(engine, "s", [1], 0)
    said.append("answered")
    await asyncio.sleep(0)
    assert said == ["answered", "counted 1"]
    assert observer.counts["step_count"] == 1


async def test_random_interleavings_keep_sessions_apart(start, model):
    rng = random.Random(1)
    streams = {f"s{n}": [rng.randrange(255) for _ in range(40)] for n in range(20)}
    engine = start(streams, max_batch=7, hot_state_bytes=5 * (ENTRY_BYTES + 40))

    async def run(session, tokens):
        position = total = 0
        while position < len(tokens):
            chunk = tokens[position : position + rng.randint(1, 5)]
            reply = await send(engine, session, chunk, position)
            expected = [total := total + token for token in chunk]
            position += len(chunk)
            assert reply == (position, expected, False)

    await asyncio.gather(*(run(*stream) for stream in streams.items()))
    assert max(model.batch_sizes) > 1


async def test_cancel_one_of_a_batch_and_the_rest_answer(start):
    engine = start("abc")
    futures = [submit(engine, name, [1], 0) for name in "abc"]
    futures[1].cancel()
    work_answers = await asyncio.gather(futures[0], futures[2])
    assert [answer.position for answer in work_answers] == [1, 1]


async def test_a_full_queue_refuses(start):
    engine = start("abcd", max_waiting=2)
    outcomes = await asyncio.gather(*(send(engine, name, [1], 0) for name in "abcd"))
    assert outcomes.count("OVERLOADED") == 2


async def test_drain_answers_what_was_taken_and_refuses_the_rest(start):
    engine = start("s")
    taken = submit(engine, "s", [1], 0)
    await asyncio.wait_for(engine.drain(), 5)
    assert taken.done()
    assert await send(engine, "s", [2], 1) == "DRAINING"


async def test_a_session_idle_for_too_long_is_told_apart_from_a_lost_one(start, store):
    engine = start(["idle"], session_ttl_s=0.001)
    await send(engine, "idle", [1], 0)
    store.records.clear()  # as the store's clock would
    await asyncio.sleep(0.002)
    assert await send(engine, "idle", [2], 1) == "SESSION_EXPIRED"
    assert await send(engine, "idle", [2], 1) == "SESSION_LOST"


async def test_a_record_that_vanished_early_is_lost(start, store):
    engine = start("s")
    await send(engine, "s", [1], 0)
    store.records.clear()
    assert await send(engine, "s", [2], 1) == "SESSION_LOST"


async def test_a_session_changed_while_a_chunk_is_under_way_is_forgotten_after_it(start):
    engine = start(["s", "another"])
    await send(engine, "s", [1], 0)
    under_way = submit(engine, "s", [2], 1)
    engine.forget(b"s")
    assert b"s" in engine._core.cache.slots
    await under_way
    await send(engine, "another", [1], 0)
    assert b"s" not in engine._core.cache.slots
    assert not engine._core._forgotten
