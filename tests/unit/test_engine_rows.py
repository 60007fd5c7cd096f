"""Rows of many sessions in the engine: each row fares as it would alone."""

import asyncio
import gc
import random
import weakref

import numpy as np
import pytest

from holdfast.errors import InvalidRequest
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.asked import Asked
from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from service.engine.rows import NOT_GIVEN, Message, Rows, token_sums
from service.rpc.batches import BatchCall, BatchLimits
from service.store.keys import session_key
from tests.support.fakes import FakeModels, PoisonModel, open_session
from tests.unit.test_driver import send, submit


class Sent:
    """Rows of a message; keeps what becomes of each: position and totals, or the reason of a refusal."""

    def __init__(self, sessions, tokens, positions=None, acknowledged=None):
        count = len(sessions)
        tokens = np.array(tokens, np.int64).reshape(count, -1)
        self.message = Message(self._reply, count)
        self.rows = Rows(
            Asked("ids", tokens.shape[1], model_name="sum"),
            [session.encode() for session in sessions],
            tokens,
            token_sums(tokens),
            np.array(positions or [NOT_GIVEN] * count, np.int64),
            None if acknowledged is None else np.array(acknowledged, np.int64),
            message=self.message,
            numbers=np.arange(count),
        )
        self.outcomes = [None] * count
        self.done = asyncio.get_running_loop().create_future()

    def _reply(self, rows, error):
        for place, number in enumerate(rows.numbers.tolist()):
            assert self.outcomes[number] is None, "a row is answered twice"
            if error is not None:
                self.outcomes[number] = error.reason
            else:
                position, totals = rows.next_stamps[place, 1], rows.outputs[place].view(np.float32)
                self.outcomes[number] = (int(position), totals.tolist(), rows.is_replayed)
        if None not in self.outcomes:
            self.done.set_result(self.outcomes)


async def send_rows(engine, *arguments, **options):
    sent = Sent(*arguments, **options)
    engine.submit_rows(sent.rows)
    return await asyncio.wait_for(sent.done, 5)


async def test_rows_run_and_go_on(start, model):
    engine = start("ab")
    assert await send_rows(engine, "ab", [1, 2], [0, 0]) == [(1, [1], False), (1, [2], False)]
    assert await send_rows(engine, "ab", [[1, 1], [5, 5]], [1, 1]) == [
        (3, [2, 3], False),
        (3, [7, 12], False),
    ]
    assert model.batch_sizes == [2, 2]


async def test_rows_without_a_position_append(start):
    engine = start("ab")
    await send_rows(engine, "ab", [1, 2])
    assert await send_rows(engine, "ab", [3, 3]) == [(2, [4], False), (2, [5], False)]


async def test_rows_of_cold_and_hot_sessions_are_one_load_and_one_run(start, store, model):
    await send_rows(start("abcd"), "abcd", [1, 2, 3, 4], [0] * 4)
    engine = start()
    await send(engine, "a", [1], 1)
    before, model.batch_sizes[:] = store.load_count, []
    outcomes = await send_rows(engine, "abcd", [1, 1, 1, 1], [2, 1, 1, 1])
    assert outcomes == [(3, [3], False), (2, [3], False), (2, [4], False), (2, [5], False)]
    assert store.load_count == before + 1
    assert model.batch_sizes == [4]


async def test_a_row_is_not_refused_by_what_was_known_before_it_came(start):
    """A replica that holds an old record, with all its replies, looks at the store before it says no."""
    here, elsewhere = start("a"), start()
    await send_rows(elsewhere, "a", [1], [0])
    assert await send_rows(here, "a", [1], [0]) == [(1, [1], True)]  # so it has read the record
    await send_rows(elsewhere, "a", [2], [1])
    assert await send_rows(here, "a", [3], [2]) == [(3, [6], False)]


async def test_a_row_is_not_replayed_from_what_the_store_has_lost(start, store):
    engine = start("a")
    await send_rows(engine, "a", [1], [0])
    assert await send_rows(engine, "a", [1], [0]) == [(1, [1], True)]  # the record is in memory
    store.records.clear()
    assert await send_rows(engine, "a", [1], [0]) == ["SESSION_NOT_FOUND"]


async def test_each_row_is_refused_or_replayed_alone(start):
    engine = start("abcd")
    await send_rows(engine, "abcd", [1, 2, 3, 4], [0] * 4)
    outcomes = await send_rows(engine, "abcdef", [9, 2, 9, 256, 9, 9], [1, 0, 7, 1, 5, 0])
    assert outcomes == [
        (2, [10], False),
        (1, [2], True),
        "POSITION_GAP",
        "INVALID_REQUEST",
        "SESSION_LOST",
        "SESSION_NOT_FOUND",
    ]


async def test_a_row_that_would_not_be_finite_fails_alone(start):
    engine = start("ab")
    assert await send_rows(engine, "ab", [255, 1], [0, 0]) == ["STATE_NOT_FINITE", (1, [1], False)]
    assert await send_rows(engine, "ab", [4, 1], [0, 1]) == [(1, [4], False), (2, [2], False)]


async def test_a_row_that_another_replica_moved_on_conflicts_alone(start, observer):
    engine, other = start("abc"), start()
    await send_rows(engine, "abc", [1, 2, 3], [0] * 3)
    await send(other, "b", [7], 1)
    assert await send_rows(engine, "abc", [1, 1, 1], [1] * 3) == [
        (2, [2], False),
        "POSITION_CONFLICT",
        (2, [4], False),
    ]
    assert observer.counts["conflict_count"] == 1
    assert await send_rows(engine, "abc", [1, 1, 1]) == [
        (3, [3], False),
        (3, [10], False),
        (3, [5], False),
    ]


async def test_rows_sent_again_to_another_replica_are_replayed(start, model):
    first = await send_rows(start("ab"), "ab", [[1, 2], [3, 4]], [0, 0])
    runs = len(model.batch_sizes)
    again = await send_rows(start(), "ab", [[1, 2], [3, 4]], [0, 0])
    assert again == [(position, totals, True) for position, totals, _ in first]
    assert len(model.batch_sizes) == runs


async def test_an_unknown_fate_is_found_out_for_every_row(start, store):
    engine = start("ab")
    store.lose_reply = True
    assert await send_rows(engine, "ab", [1, 2], [0, 0]) == [(1, [1], False), (1, [2], False)]


@pytest.mark.parametrize("fault", ["model", "store", "load"])
async def test_a_fault_fails_every_row_once_and_the_next_rows_work(start, model, store, fault):
    engine = start("ab")
    if fault != "load":
        await send_rows(engine, "ab", [1, 2], [0, 0])
    at = 0 if fault == "load" else 1
    if fault == "model":
        model.fail_with = RuntimeError("broken")
    else:
        store.is_available = False
    reason = "MODEL_FAILED" if fault == "model" else "STORE_UNAVAILABLE"
    assert await send_rows(engine, "ab", [1, 1], [at, at]) == [reason, reason]
    model.fail_with, store.is_available = None, True
    outcomes = await send_rows(engine, "ab", [1, 1], [at, at])
    assert outcomes == ([(1, [1], False)] * 2 if fault == "load" else [(2, [2], False), (2, [3], False)])


async def test_a_caller_that_has_gone_is_not_served(start, model):
    engine = start("ab")
    sent = Sent("ab", [1, 2], [0, 0])
    sent.message.is_cancelled = True
    engine.submit_rows(sent.rows)
    assert await asyncio.wait_for(sent.done, 5) == ["DEADLINE_PASSED"] * 2
    assert model.batch_sizes == []


async def test_a_full_queue_refuses_the_whole_message(start):
    engine = start("abcd", max_waiting=3)
    first, second = Sent("ab", [1, 2], [0, 0]), Sent("cd", [3, 4], [0, 0])
    engine.submit_rows(first.rows)
    engine.submit_rows(second.rows)
    assert await asyncio.wait_for(second.done, 5) == ["OVERLOADED"] * 2
    assert await asyncio.wait_for(first.done, 5) == [(1, [1], False), (1, [2], False)]


async def test_drain_answers_rows_taken_and_refuses_others(start):
    engine = start("ab")
    sent = Sent("ab", [1, 2], [0, 0])
    engine.submit_rows(sent.rows)
    await asyncio.wait_for(engine.drain(), 5)
    assert sent.done.done()
    assert await send_rows(engine, "ab", [1, 1], [1, 1]) == ["DRAINING"] * 2


async def test_rows_and_single_chunks_keep_the_order_of_each_session(start):
    engine = start("abcdef", max_batch=4)
    rng = random.Random(3)
    totals, expected, pending = dict.fromkeys("abcdef", 0), {}, []
    positions = dict.fromkeys("abcdef", 0)
    for _ in range(60):
        sessions = rng.sample("abcdef", rng.randint(1, 6))
        tokens = [rng.randrange(200) for _ in sessions]
        for session, token in zip(sessions, tokens, strict=True):
            totals[session] += token
            expected[session, positions[session]] = totals[session]
        if len(sessions) == 1:
            future = submit(engine, sessions[0], tokens, positions[sessions[0]])
        else:
            sent = Sent(sessions, tokens, [positions[session] for session in sessions])
            engine.submit_rows(sent.rows)
            future = sent.done
        pending.append((sessions, [positions[session] for session in sessions], future))
        for session in sessions:
            positions[session] += 1
    for sessions, at, future in pending:
        outcome = await asyncio.wait_for(future, 5)
        rows = outcome if isinstance(outcome, list) else [_plain(outcome)]
        wanted = [
            (place + 1, [expected[session, place]], False)
            for session, place in zip(sessions, at, strict=True)
        ]
        assert rows == wanted


def _plain(answer):
    return answer.position, np.frombuffer(answer.outputs, np.float32).tolist(), answer.replayed


async def test_a_client_that_begins_to_send_ahead_keeps_the_reply_it_has_not_seen(start):
    """The reply to the chunk before is in the store only, and must still be in the next record."""
    engine = start("ab")
    first = await send_rows(engine, "ab", [1, 2], [0, 0])
    await send_rows(engine, "ab", [1, 1], [1, 1], acknowledged=[0, 0])
    again = await send_rows(start(), "ab", [1, 2], [0, 0])
    assert again == [(position, totals, True) for position, totals, _ in first]


async def test_a_message_that_is_answered_is_let_go_of_at_once(start, store, model):
    """It holds its tokens and its outputs; a cycle would keep them until the collector comes."""
    engine, done = start(session_key("default", name).decode() for name in "ab"), asyncio.Event()
    batch = pb.Batch(model=pb.ModelRef(name="sum"), session_ids="ab", positions=[0, 0], text=b"xy")
    gc.disable()
    try:
        call = BatchCall(batch, lambda _: done.set(), "default", BatchLimits([model], 10, 10))
        call.submit(engine)
        await asyncio.wait_for(done.wait(), 5)
        assert not call.errors
        call.cancel()
        left = weakref.ref(call)
        await asyncio.sleep(0.01)  # tasks that end hold what they did until the loop has turned
        del call
        assert left() is None
    finally:
        gc.enable()


async def test_rows_that_take_longer_hold_up_no_others(store):
    """One that stalls is answered in a part of its own."""
    model = PoisonModel()
    engine = Driver(FakeModels(model), store, lambda _: None, EngineLimits(run_timeout_s=1.0))
    engine.start()
    for name in "abc":
        open_session(store, session_key("default", name).decode(), model)
    parts, done, has_part = [], asyncio.Event(), asyncio.Event()
    batch = pb.Batch(
        model=pb.ModelRef(name="sum"), session_ids="abc", positions=[0, 0, 0], text=b"\x05\xfd\x07", tag=9
    )
    call = BatchCall(
        batch,
        lambda _: done.set(),
        "default",
        BatchLimits([model], 10, 10),
        on_part=lambda _: has_part.set(),
    )
    try:
        call.submit(engine)
        async with asyncio.timeout(10):
            while call.answered_count < 2:
                await has_part.wait()
                has_part.clear()
        parts.append(pb.StreamBatchesResponse.FromString(call.reply()).result)
        assert call.answered_count == 0
        await asyncio.wait_for(done.wait(), 10)
        parts.append(pb.StreamBatchesResponse.FromString(call.reply()).result)
    finally:
        await engine.stop()
    assert [(part.tag, list(part.rows), list(part.positions)) for part in parts] == [
        (9, [0, 2], [1, 1]),
        (9, [1], [0]),
    ]
    assert not parts[0].errors
    assert [error.row for error in parts[1].errors] == [0]


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(model, timeout_s):
    batch = pb.Batch(model=pb.ModelRef(name="sum"), session_ids="a", text=b"x", timeout_s=timeout_s)
    with pytest.raises(InvalidRequest, match="timeout_s is"):
        BatchCall(batch, lambda _: None, "default", BatchLimits([model], 10, 10))


async def test_rows_whose_callers_have_gone_do_not_run(start, model):
    engine = start([session_key("default", "a").decode()])
    done = asyncio.Event()
    batch = pb.Batch(model=pb.ModelRef(name="sum"), session_ids="a", text=b"x", timeout_s=1e-9)
    call = BatchCall(batch, lambda _: done.set(), "default", BatchLimits([model], 10, 10))
    call.submit(engine)
    await asyncio.wait_for(done.wait(), 10)
    assert [error.reason for error in call.errors] == ["DEADLINE_PASSED"]
