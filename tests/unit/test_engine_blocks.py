"""Blocks of many sessions in the engine: each row fares as it would alone."""

import asyncio
import random

import numpy as np
import pytest

from holdfast.history_digest import sums_of
from service.engine.rows import NOT_GIVEN
from service.engine.rows import Rows as EngineRows
from service.engine.rules import Claim
from service.engine.work import Answer, Asked, Work
from tests.unit.test_engine import send, submit


class Rows:
    """Owns a block; keeps what becomes of each row: position and totals, or the reason of a refusal."""

    def __init__(self, sessions, tokens, positions=None, acknowledged=None):
        self.keys = [session.encode() for session in sessions]
        self.tokens = np.array(tokens, np.int64).reshape(len(sessions), -1)
        self.positions = positions
        self.acknowledged = acknowledged
        self.asked = Asked("ids", self.tokens.shape[1], model_name="sum")
        self.is_cancelled = False
        self.outcomes = [None] * len(sessions)
        self.works = {}
        self.done = asyncio.get_running_loop().create_future()

    def block(self):
        count = len(self.keys)
        return EngineRows(
            owner=self,
            numbers=np.arange(count),
            asked=self.asked,
            keys=self.keys,
            tokens=self.tokens,
            sums=sums_of(self.tokens),
            positions=np.array(self.positions or [NOT_GIVEN] * count, np.int64),
            acknowledged=None if self.acknowledged is None else np.array(self.acknowledged, np.int64),
            incarnations=None,
            digests=None,
            arrived_s=[],
        )

    def applied(self, applied):
        for row, (_, position, _), outputs in zip(
            applied.rows.tolist(), applied.stamps.tolist(), applied.outputs, strict=True
        ):
            self._settle(row, (position, outputs.view(np.float32).tolist(), False))

    def work(self, row):
        if row not in self.works:
            raw = self.tokens[row].tobytes()
            position = None if self.positions is None else self.positions[row]
            acknowledged = None if self.acknowledged is None else self.acknowledged[row]
            claim = Claim(self.asked.token_count, self.tokens[row], position, acknowledged)
            self.works[row] = Work(self.keys[row], self.asked, claim, raw, self._answer, row)
        return self.works[row]

    def _answer(self, work, outcome):
        if isinstance(outcome, Answer):
            totals = np.frombuffer(outcome.outputs, np.float32).tolist()
            self._settle(work.request, (outcome.position, totals, outcome.replayed))
        else:
            self._settle(work.request, outcome.reason)

    def _settle(self, row, outcome):
        assert self.outcomes[row] is None, "a row is answered twice"
        self.outcomes[row] = outcome
        if None not in self.outcomes:
            self.done.set_result(self.outcomes)


async def send_block(engine, *arguments, **options):
    rows = Rows(*arguments, **options)
    engine.submit_rows(rows.block())
    return await asyncio.wait_for(rows.done, 5)


async def test_rows_run_and_go_on(start, model):
    engine = start("ab")
    assert await send_block(engine, "ab", [1, 2], [0, 0]) == [(1, [1], False), (1, [2], False)]
    assert await send_block(engine, "ab", [[1, 1], [5, 5]], [1, 1]) == [
        (3, [2, 3], False),
        (3, [7, 12], False),
    ]
    assert model.batch_sizes == [2, 2]


async def test_rows_without_a_position_append(start):
    engine = start("ab")
    await send_block(engine, "ab", [1, 2])
    assert await send_block(engine, "ab", [3, 3]) == [(2, [4], False), (2, [5], False)]


async def test_a_block_of_cold_and_hot_sessions_is_one_load_and_one_run(start, store, model):
    await send_block(start("abcd"), "abcd", [1, 2, 3, 4], [0] * 4)
    engine = start()
    await send(engine, "a", [1], 1)
    before, model.batch_sizes[:] = store.load_count, []
    outcomes = await send_block(engine, "abcd", [1, 1, 1, 1], [2, 1, 1, 1])
    assert outcomes == [(3, [3], False), (2, [3], False), (2, [4], False), (2, [5], False)]
    assert store.load_count == before + 1
    assert model.batch_sizes == [4]


async def test_a_row_is_not_refused_by_what_was_known_before_it_came(start):
    """A replica that holds an old record, with all its replies, looks at the store before it says no."""
    here, elsewhere = start("a"), start()
    await send_block(elsewhere, "a", [1], [0])
    assert await send_block(here, "a", [1], [0]) == [(1, [1], True)]  # so it has read the record
    await send_block(elsewhere, "a", [2], [1])
    assert await send_block(here, "a", [3], [2]) == [(3, [6], False)]


async def test_a_row_is_not_replayed_from_what_the_store_has_lost(start, store):
    engine = start("a")
    await send_block(engine, "a", [1], [0])
    assert await send_block(engine, "a", [1], [0]) == [(1, [1], True)]  # the record is in memory
    store.records.clear()
    assert await send_block(engine, "a", [1], [0]) == ["SESSION_NOT_FOUND"]


async def test_each_row_is_refused_or_replayed_alone(start):
    engine = start("abcd")
    await send_block(engine, "abcd", [1, 2, 3, 4], [0] * 4)
    outcomes = await send_block(engine, "abcdef", [9, 2, 9, 256, 9, 9], [1, 0, 7, 1, 5, 0])
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
    assert await send_block(engine, "ab", [255, 1], [0, 0]) == ["STATE_NOT_FINITE", (1, [1], False)]
    assert await send_block(engine, "ab", [4, 1], [0, 1]) == [(1, [4], False), (2, [2], False)]


async def test_a_row_that_another_replica_moved_on_conflicts_alone(start, observer):
    engine, other = start("abc"), start()
    await send_block(engine, "abc", [1, 2, 3], [0] * 3)
    await send(other, "b", [7], 1)
    assert await send_block(engine, "abc", [1, 1, 1], [1] * 3) == [
        (2, [2], False),
        "POSITION_CONFLICT",
        (2, [4], False),
    ]
    assert observer.counts["conflicted"] == 1
    assert await send_block(engine, "abc", [1, 1, 1]) == [
        (3, [3], False),
        (3, [10], False),
        (3, [5], False),
    ]


async def test_a_block_sent_again_to_another_replica_is_replayed(start, model):
    first = await send_block(start("ab"), "ab", [[1, 2], [3, 4]], [0, 0])
    runs = len(model.batch_sizes)
    again = await send_block(start(), "ab", [[1, 2], [3, 4]], [0, 0])
    assert again == [(position, totals, True) for position, totals, _ in first]
    assert len(model.batch_sizes) == runs


async def test_an_unknown_fate_is_found_out_for_every_row(start, store):
    engine = start("ab")
    store.lose_reply = True
    assert await send_block(engine, "ab", [1, 2], [0, 0]) == [(1, [1], False), (1, [2], False)]


@pytest.mark.parametrize("fault", ["model", "store", "load"])
async def test_a_fault_fails_every_row_once_and_the_next_block_works(start, model, store, fault):
    engine = start("ab")
    if fault != "load":
        await send_block(engine, "ab", [1, 2], [0, 0])
    at = 0 if fault == "load" else 1
    if fault == "model":
        model.fail_with = RuntimeError("broken")
    else:
        store.is_available = False
    reason = "MODEL_FAILED" if fault == "model" else "STORE_UNAVAILABLE"
    assert await send_block(engine, "ab", [1, 1], [at, at]) == [reason, reason]
    model.fail_with, store.is_available = None, True
    outcomes = await send_block(engine, "ab", [1, 1], [at, at])
    assert outcomes == ([(1, [1], False)] * 2 if fault == "load" else [(2, [2], False), (2, [3], False)])


async def test_a_caller_that_has_gone_is_not_served(start, model):
    engine = start("ab")
    rows = Rows("ab", [1, 2], [0, 0])
    rows.is_cancelled = True
    engine.submit_rows(rows.block())
    assert await asyncio.wait_for(rows.done, 5) == ["DEADLINE_PASSED"] * 2
    assert model.batch_sizes == []


async def test_a_full_queue_refuses_the_whole_block(start):
    engine = start("abcd", max_waiting=3)
    first, second = Rows("ab", [1, 2], [0, 0]), Rows("cd", [3, 4], [0, 0])
    engine.submit_rows(first.block())
    engine.submit_rows(second.block())
    assert await asyncio.wait_for(second.done, 5) == ["OVERLOADED"] * 2
    assert await asyncio.wait_for(first.done, 5) == [(1, [1], False), (1, [2], False)]


async def test_drain_answers_blocks_taken_and_refuses_others(start):
    engine = start("ab")
    rows = Rows("ab", [1, 2], [0, 0])
    engine.submit_rows(rows.block())
    await asyncio.wait_for(engine.drain(), 5)
    assert rows.done.done()
    assert await send_block(engine, "ab", [1, 1], [1, 1]) == ["DRAINING"] * 2


async def test_blocks_and_single_chunks_keep_the_order_of_each_session(start):
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
            rows = Rows(sessions, tokens, [positions[session] for session in sessions])
            engine.submit_rows(rows.block())
            future = rows.done
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
    first = await send_block(engine, "ab", [1, 2], [0, 0])
    await send_block(engine, "ab", [1, 1], [1, 1], acknowledged=[0, 0])
    again = await send_block(start(), "ab", [1, 2], [0, 0])
    assert again == [(position, totals, True) for position, totals, _ in first]
