"""Checkpoints against other writers, lost replies and acknowledgements that do not come."""

import numpy as np
import pytest

from holdfast.errors import (
    AckLevelNotReached,
    CheckpointNotFound,
    ModelMismatch,
    PositionConflict,
    SessionDeleted,
    StoreUnavailable,
)
from service.engine.checkpoints import Checkpoints
from service.engine.meant import Meant
from service.store.protocol import AckLevel, Found
from service.store.record import decode, encode
from tests.support.fakes import FakeModels
from tests.unit.test_driver import send

KEY = b"s"


@pytest.fixture
def checkpoints_of(store, model):
    def create(engine, **options):
        return Checkpoints(FakeModels(model), store, engine, **{"ttl_s": 60, "max_count": 3, **options})

    return create


def total(record):
    return float(np.frombuffer(record.state, np.float32)[0])


async def test_a_replica_that_has_the_session_in_memory_goes_on_from_the_checkpoint(start, checkpoints_of):
    one, two = start("s"), start()
    await send(one, "s", [1], 0)
    await send(two, "s", [2], 1)
    await send(one, "s", [3], 2)
    checkpoints = checkpoints_of(one)
    saved = await checkpoints.save(KEY, "here", Meant(3))
    assert await send(two, "s", [100], 3) == (4, [106], False)
    session = await checkpoints.restore(KEY, "here", 0, 5)
    assert (session.record.position, session.record.digest, total(session.record)) == (3, saved.digest, 6)
    assert await send(two, "s", [4], 3) == (4, [10], False)
    assert await send(one, "s", [5], 4) == (5, [15], False)
    assert await send(one, "s", [3], 2) == "POSITION_CONFLICT"


async def test_what_moves_on_between_reading_and_saving_is_saved_as_it_is_then(
    start, store, checkpoints_of
):
    engine = start("s")
    checkpoints, save = checkpoints_of(engine), store.save_checkpoint

    async def save_after_another_commit(*arguments):
        store.save_checkpoint = save
        await send(engine, "s", [1], 0)
        return await save(*arguments)

    store.save_checkpoint = save_after_another_commit
    assert (await checkpoints.save(KEY, "here", Meant())).position == 1
    store.save_checkpoint = save_after_another_commit
    with pytest.raises(PositionConflict):
        await checkpoints.save(KEY, "there", Meant(0))
    assert [head.name for head in await checkpoints.list(KEY)] == ["here"]


async def test_what_moves_on_between_reading_and_restoring_is_put_back_all_the_same(
    start, store, checkpoints_of
):
    engine = start("s")
    await send(engine, "s", [1], 0)
    checkpoints, load = checkpoints_of(engine), store.load_checkpoint
    await checkpoints.save(KEY, "here", Meant())

    async def load_before_another_commit(*arguments):
        store.load_checkpoint = load
        await send(engine, "s", [7], 1)
        return await load(*arguments)

    store.load_checkpoint = load_before_another_commit
    assert (await checkpoints.restore(KEY, "here", 0, 5)).record.position == 1
    record = decode(store.records[KEY])
    assert (record.position, total(record), record.nonce) == (1, 1, -5)


async def test_a_writer_that_always_comes_first_wins(start, store, checkpoints_of):
    engine = start("s")
    checkpoints = checkpoints_of(engine)
    await checkpoints.save(KEY, "here", Meant())

    async def always_another(*_):
        return Found(store.records[KEY])

    store.save_checkpoint = always_another
    with pytest.raises(PositionConflict, match="keep changing"):
        await checkpoints.save(KEY, "there", Meant())

    async def never(writes, ttl_s):
        return {0: Found(store.records[KEY])}

    store.commit = never
    with pytest.raises(PositionConflict, match="keep changing"):
        await checkpoints.restore(KEY, "here", 0, 5)


async def test_a_restore_without_a_reply_is_found_by_its_repetition(start, store, checkpoints_of):
    engine = start("s")
    checkpoints = checkpoints_of(engine)
    await send(engine, "s", [1], 0, cursor=b"one")
    await checkpoints.save(KEY, "here", Meant())
    await send(engine, "s", [2], 1, cursor=b"two")
    before = decode(store.records[KEY]).incarnation
    store.lose_reply = True
    with pytest.raises(StoreUnavailable):
        await checkpoints.restore(KEY, "here", before, 5)
    done = decode(store.records[KEY])
    session = await checkpoints.restore(KEY, "here", before, 5)
    assert (session.record, session.cursor) == (done, b"one")
    assert session.record.incarnation != before
    with pytest.raises(SessionDeleted):
        await checkpoints.restore(KEY, "here", before, 6)


async def test_what_is_not_as_durable_as_promised_is_no_success(start, store, checkpoints_of):
    engine = start("s")
    checkpoints = checkpoints_of(engine, ack_level=AckLevel.REPLICATED)
    await checkpoints.save(KEY, "here", Meant())
    assert store.confirmed == [(KEY, AckLevel.REPLICATED)]
    store.unconfirmed.add(KEY)
    for work in (
        checkpoints.save(KEY, "there", Meant()),
        checkpoints.delete(KEY, "there"),
        checkpoints.restore(KEY, "here", 0, 5),
        checkpoints.restore(KEY, "here", 0, 5),  # is done, and waits again
    ):
        with pytest.raises(AckLevelNotReached):
            await work
    store.unconfirmed.clear()
    incarnation = decode(store.records[KEY]).incarnation
    assert (await checkpoints.restore(KEY, "here", 0, 5)).record.incarnation == incarnation


async def test_a_checkpoint_of_a_model_that_is_not_served_is_not_restored(start, store, checkpoints_of):
    engine = start("s")
    checkpoints = checkpoints_of(engine)
    served = store.records[KEY]
    store.records[KEY] = encode(decode(served)._replace(fingerprint=b"?" * 32))
    await checkpoints.save(KEY, "here", Meant())
    store.records[KEY] = served
    with pytest.raises(ModelMismatch):
        await checkpoints.restore(KEY, "here", 0, 5)
    assert store.records[KEY] == served


async def test_the_checkpoints_of_an_earlier_session_are_gone(start, store, checkpoints_of):
    engine = start("s")
    checkpoints = checkpoints_of(engine)
    await checkpoints.save(KEY, "here", Meant())
    store.records.clear()  # it has expired
    store.siblings.clear()
    start("s")
    with pytest.raises(CheckpointNotFound):
        await checkpoints.restore(KEY, "here", 0, 5)
