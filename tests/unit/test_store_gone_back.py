"""A store that has gone back while replicas remember: nothing is built on a history that it does not hold.

The state is a running sum, so a reply shows from which tokens it was computed.
"""

import asyncio

import numpy as np
import pytest

from holdfast.history_digest import INITIAL, run_of
from service.engine.asked import Asked
from service.engine.rows import Chunk, Reply
from service.engine.sessions import Opening, Sessions
from service.store.record import decode, draw_incarnation, encode
from tests.support.fakes import AccumulatorModel, FakeModels
from tests.unit.test_engine_rows import Sent

ABC, XXX, YYY, ZZZ = [1, 2, 3], [10, 10, 10], [20, 20, 20], [7, 7, 7]


def digest_of(*parts):
    return run_of(np.array([token for part in parts for token in part])).after(INITIAL)


def submit(engine, tokens, position=None, model_name="sum", **claim):
    future = asyncio.get_running_loop().create_future()
    raw = np.array(tokens, np.int64).tobytes()
    asked = Asked("ids", len(tokens), model_name=model_name)
    engine.submit(Chunk(b"s", asked, raw, lambda _, got: future.set_result(got), position, **claim))
    return future


async def send(engine, tokens, position=None, **claim):
    """Returns position, history digest and the last running total; or the reason of the refusal."""
    outcome = await asyncio.wait_for(submit(engine, tokens, position, **claim), 5)
    if isinstance(outcome, Reply):
        total = float(np.frombuffer(outcome.outputs, np.float32)[-1])
        return outcome.position, outcome.digest, total
    return outcome.reason


def stored(store):
    record = decode(store.records[b"s"])
    return record.position, record.digest, float(np.frombuffer(record.state, np.float32)[0])


@pytest.fixture
async def replaced(start, store):
    """Two replicas; XXX went through the first and was lost; YYY took its place by the second."""
    one, two = start("s"), start()
    await send(one, ABC, 0)
    before = dict(store.records)
    assert await send(one, XXX, 3) == (6, digest_of(ABC, XXX), 36)
    store.records = before
    assert await send(two, YYY, 3) == (6, digest_of(ABC, YYY), 66)
    return one, two


@pytest.mark.parametrize("position", [6, None])
async def test_a_replica_goes_on_from_what_is_stored(replaced, store, position):
    assert await send(replaced[0], ZZZ, position) == (9, digest_of(ABC, YYY, ZZZ), 87)
    assert stored(store) == (9, digest_of(ABC, YYY, ZZZ), 87)


async def test_rows_of_a_block_go_on_from_what_is_stored(replaced, store):
    rows = Sent(["s"], ZZZ, [6])
    replaced[0].submit_rows(rows.rows)
    assert await asyncio.wait_for(rows.done, 5) == [(9, [73, 80, 87], False)]


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("acknowledged", [6, 3, None])
async def test_a_writer_whose_tokens_were_replaced_is_told(replaced, store, replica, acknowledged):
    meant = {"digest": digest_of(ABC, XXX), "acknowledged": acknowledged}
    assert await send(replaced[replica], ZZZ, 6, **meant) == "HISTORY_CONFLICT"
    assert stored(store) == (6, digest_of(ABC, YYY), 66)


@pytest.mark.parametrize("replica", [0, 1])
async def test_the_lost_chunk_sent_again_is_no_replay_of_the_other(replaced, store, replica):
    assert await send(replaced[replica], XXX, 3, digest=digest_of(ABC)) == "POSITION_CONFLICT"
    assert stored(store) == (6, digest_of(ABC, YYY), 66)


@pytest.mark.parametrize("replica", [0, 1])
async def test_an_equal_chunk_after_another_history_is_no_replay(replaced, replica):
    await send(replaced[1], ZZZ, 6)
    assert await send(replaced[replica], ZZZ, 6, digest=digest_of(ABC, XXX)) == "POSITION_CONFLICT"
    assert await send(replaced[replica], ZZZ, 6, digest=digest_of(ABC, YYY)) == (
        9,
        digest_of(ABC, YYY, ZZZ),
        87,
    )


async def test_lost_tokens_that_are_sent_again_heal_it_whatever_the_chunks(start, store):
    one, two = start("s"), start()
    before = dict(store.records)
    await send(one, ABC + XXX, 0)
    store.records = before
    meant = {"digest": digest_of(ABC, XXX), "acknowledged": 6}
    assert await send(one, ZZZ, 6, **meant) == "STORE_REGRESSED"
    for position, token in enumerate(ABC + XXX):
        await send(two, [token], position, digest=digest_of((ABC + XXX)[:position]))
    assert await send(one, ZZZ, 6, **meant) == (9, digest_of(ABC, XXX, ZZZ), 57)


async def test_a_chunk_sent_ahead_does_not_run_behind_another_writers(start, store):
    """Two chunks under way; another writer comes between: the first is refused, and with it the second."""
    one, two = start("s"), start()
    await send(one, ABC, 0)
    await send(two, [20], 3)
    first = submit(one, [10], 3, digest=digest_of(ABC), acknowledged=3)
    second = submit(one, [11], 4, digest=digest_of(ABC, [10]), acknowledged=3)
    assert [(await first).reason, (await second).reason] == ["POSITION_CONFLICT", "HISTORY_CONFLICT"]
    assert stored(store) == (4, digest_of(ABC, [20]), 26)


async def test_a_backup_restored_under_running_replicas(start, store):
    one, two = start("s"), start()
    await send(one, ABC, 0)
    backup = dict(store.records)
    await send(one, XXX, 3)
    await send(two, ZZZ, 6)
    store.records = backup
    assert await send(two, YYY, 9, acknowledged=9, digest=digest_of(ABC, XXX, ZZZ)) == "STORE_REGRESSED"
    await send(one, YYY, 3)
    assert await send(two, [1], 6) == (7, digest_of(ABC, YYY, [1]), 67)


async def test_a_run_under_way_when_the_store_goes_back_is_not_committed(start, store):
    """The chunk runs on a state that is lost meanwhile; its commit is refused, and it runs again."""
    one, two = start("s"), start()
    await send(one, ABC, 0)
    before = dict(store.records)
    await send(one, XXX, 3)
    commit, replaced_by = store.commit, {}

    async def lose_and_commit(writes, ttl_s):
        if not replaced_by:
            replaced_by["YYY"] = True
            store.records = before
            store.epoch += 1
            await send(two, YYY, 3)
        return await commit(writes, ttl_s)

    store.commit = lose_and_commit
    assert await send(one, ZZZ, 6) == (9, digest_of(ABC, YYY, ZZZ), 87)


async def test_a_retry_is_not_answered_from_memory_of_an_earlier_epoch(start, store):
    """The retry waits while its first attempt commits; then the store's server is another, without it."""
    engine = start("s")
    before, commit = dict(store.records), store.commit

    async def commit_and_fail_over(writes, ttl_s):
        store.commit = commit
        refusals = await commit(writes, ttl_s)
        store.records = before
        store.epoch += 1
        return refusals

    store.commit = commit_and_fail_over
    first, retry = (submit(engine, ABC, 0, acknowledged=0) for _ in range(2))
    assert not (await first).replayed
    assert not (await asyncio.wait_for(retry, 5)).replayed
    assert stored(store) == (3, digest_of(ABC), 6)


async def test_what_is_read_across_a_change_of_the_server_is_read_again(start, store):
    """The server that is left says that the session is deleted; the one that takes over does not know."""
    engine, load = start("s"), store.load
    await send(start(), ABC, 0)
    deleted = encode(decode(store.records[b"s"])._replace(deleted=True, state=b"", replies=()))

    async def load_and_fail_over(keys):
        store.load = load
        store.epoch += 1
        return [deleted for _ in keys]

    store.load = load_and_fail_over
    assert await send(engine, ABC, 0) == (3, digest_of(ABC), 6)


async def test_a_takeover_that_was_lost_does_not_let_the_old_writer_into_the_new_ones_history(start, store):
    one, two = start("s"), start()
    await send(one, ABC, 0)
    before = dict(store.records)
    sessions = Sessions(FakeModels(AccumulatorModel()), store, two, ttl_s=60)
    taken = await sessions.open(b"s", Opening("sum", take_over=True, nonce=5))
    incarnation = taken.record.incarnation
    await send(two, XXX, 3, incarnation=incarnation)
    store.records = before
    assert await send(two, ZZZ, 6, incarnation=incarnation) == "SESSION_DELETED"
    assert stored(store) == (3, digest_of(ABC), 6)


async def test_quarantine_that_was_lost_leaves_one_history(start, store):
    one, two = start("s"), start()
    await send(one, ABC, 0)
    record = decode(store.records[b"s"])
    store.records[b"s"] = encode(record._replace(quarantine_reason="held"))
    assert await send(two, XXX, 3) == "SESSION_QUARANTINED"
    store.records[b"s"] = encode(record)
    assert await send(two, XXX, 3) == (6, digest_of(ABC, XXX), 36)
    assert await send(one, YYY, 3) == "POSITION_CONFLICT"


async def test_a_copy_of_another_session_under_this_key_is_not_built_on(start, store):
    one, two = start(["s", "t"]), start()
    await send(one, ABC, 0)
    record = decode(store.records[b"s"])
    other = record._replace(incarnation=draw_incarnation(), digest=digest_of(YYY), state=bytes(8))
    store.records[b"s"] = encode(other)
    assert await send(one, ZZZ, 3, incarnation=record.incarnation) == "SESSION_DELETED"
    assert await send(one, ZZZ, 3, digest=digest_of(ABC)) == "HISTORY_CONFLICT"
    assert await send(two, ZZZ, 3) == (6, digest_of(YYY, ZZZ), 21)


async def test_hot_replicas_and_a_store_that_goes_back_again_and_again(start, store):
    """Any order of writes, losses and replicas: a reply is the sum of the tokens that its digest names."""
    rng = np.random.default_rng(7)
    engines, sums, backups = [start("s"), start(), start()], {digest_of(): 0.0}, [dict(store.records)]
    for turn in range(300):
        if rng.random() < 0.2:
            store.records = dict(backups[rng.integers(len(backups))])
            store.epoch += int(rng.integers(2))
        before, digest, _ = stored(store)
        tokens = rng.integers(1, 50, rng.integers(1, 4))
        reply = await send(engines[rng.integers(3)], tokens.tolist(), before)
        after = run_of(tokens).after(digest)
        sums[after] = sums[digest] + float(tokens.sum())
        assert reply == (before + len(tokens), after, sums[after]), turn
        assert stored(store) == reply
        backups = [*backups[-5:], dict(store.records)]


async def test_the_replies_of_a_lost_history_do_not_replace_those_of_the_one_that_is_stored(start, store):
    """The store goes back and comes to the same stamp by the same tokens, cut into other chunks."""
    one, two = start("s"), start()
    before = dict(store.records)
    await send(one, ABC, 0, acknowledged=0)
    await send(one, XXX, 3, acknowledged=0)
    store.records = before
    store.epoch += 1
    whole = await send(two, ABC + XXX, 0, acknowledged=0)
    await send(one, YYY, 6, acknowledged=0, digest=digest_of(ABC, XXX))
    assert await send(one, ABC + XXX, 0, acknowledged=0) == whole
    assert await send(two, ABC + XXX, 0, acknowledged=0) == whole


async def test_a_retry_names_the_model_that_the_session_has(start, store):
    engine = start("s")
    await send(engine, ABC, 0)
    assert await send(engine, ABC, 0, model_name="another") == "MODEL_MISMATCH"
    store.records[b"s"] = encode(decode(store.records[b"s"])._replace(quarantine_reason="held"))
    assert await send(start(), ABC, 0, model_name="another") == "MODEL_MISMATCH"
