"""Opening sessions: alone and in batches, again and too late."""

import numpy as np
import pytest

from holdfast.errors import (
    InvalidRequest,
    RecordCorrupt,
    ServiceError,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
)
from holdfast.history_digest import INITIAL, initial_digest
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.sessions import Opening, Sessions
from service.rpc.openings import given_states, opening_keys, opening_reply
from service.store.protocol import AckLevel
from service.store.record import decode, encode
from tests.support.fakes import FakeModels, open_session
from tests.unit.test_store_gone_back import send

NEW = Opening("sum", nonce=5)
ONLY_NEW = NEW._replace(must_be_new=True)
TAKE = NEW._replace(take_over=True)


@pytest.fixture
async def engine(start):
    return start()


@pytest.fixture
def sessions(model, store, engine):
    return Sessions(FakeModels(model), store, engine, ttl_s=60)


@pytest.mark.parametrize("opening", [NEW, ONLY_NEW, TAKE])
async def test_an_opening_whose_reply_was_lost_finds_its_own_session(sessions, store, opening):
    store.lose_reply = True
    with pytest.raises(StoreUnavailable):
        await sessions.open(b"s", opening)
    first = decode(store.records[b"s"])
    again = await sessions.open(b"s", opening)
    assert (again.record, again.is_resumed) == (first, False)


@pytest.mark.parametrize("nonce", [0, 6])
async def test_another_opening_finds_a_session_that_exists(sessions, nonce):
    await sessions.open(b"s", NEW)
    assert (await sessions.open(b"s", NEW._replace(nonce=nonce))).is_resumed
    with pytest.raises(SessionExists):
        await sessions.open(b"s", ONLY_NEW._replace(nonce=nonce))


async def test_a_takeover_sent_again_draws_no_second_incarnation(sessions):
    old = await sessions.open(b"s", Opening("sum", nonce=4))
    taken = await sessions.open(b"s", TAKE)
    again = await sessions.open(b"s", TAKE)
    assert old.record.incarnation != taken.record.incarnation == again.record.incarnation
    assert taken.is_resumed
    assert again.is_resumed, "its first tokens are another writer's"
    assert (
        await sessions.open(b"s", TAKE._replace(nonce=6))
    ).record.incarnation != taken.record.incarnation


async def test_a_session_that_was_taken_over_is_not_one_that_was_made(sessions):
    await sessions.open(b"s", Opening("sum", nonce=4))
    await sessions.open(b"s", TAKE)
    with pytest.raises(SessionExists):
        await sessions.open(b"s", ONLY_NEW)


async def test_a_late_copy_of_an_opening_does_not_open_what_was_deleted(sessions, store):
    await sessions.open(b"s", NEW)
    await sessions.delete(b"s", 0)
    tombstone = store.records[b"s"]
    for opening in (NEW, ONLY_NEW, TAKE):
        with pytest.raises(SessionDeleted):
            await sessions.open(b"s", opening)
    assert store.records[b"s"] == tombstone
    assert not (await sessions.open(b"s", NEW._replace(nonce=6))).is_resumed
    assert (await sessions.open(b"s", NEW)).is_resumed, "by then it is an opening like any other"


async def test_the_nonce_stays_with_the_session_as_it_steps(sessions, engine, store):
    await sessions.open(b"s", NEW)
    await send(engine, [1], 0, acknowledged=0)
    await send(engine, [1], 1, acknowledged=0)
    await send(engine, [1], 2)
    assert decode(store.records[b"s"]).nonce == 5
    assert not (await sessions.open(b"s", NEW)).is_resumed


@pytest.mark.parametrize("nonce", [-1, 2**53])
async def test_a_nonce_out_of_range_is_refused(sessions, store, nonce):
    with pytest.raises(InvalidRequest, match="nonce"):
        await sessions.open(b"s", Opening("sum", nonce=nonce))
    assert store.records == {}


async def test_an_empty_value_is_damage_and_left_as_found(sessions, engine, store):
    store.records[b"s"] = b""
    for opening in (NEW, ONLY_NEW, TAKE):
        with pytest.raises(RecordCorrupt):
            await sessions.open(b"s", opening)
    assert await send(engine, [1], 0) == "RECORD_CORRUPT"
    assert store.records == {b"s": b""}


async def test_a_first_state_is_part_of_the_history_and_only_looked_at_where_it_is_used(sessions):
    state = np.array([7, 0], np.float32).tobytes()
    opened = await sessions.open(b"s", Opening("sum", state=lambda _: state))
    assert opened.record.digest == initial_digest(state) != INITIAL

    def refuse(_):
        raise InvalidRequest("not looked at")

    assert (await sessions.open(b"s", Opening("sum", state=refuse))).record == opened.record
    with pytest.raises(InvalidRequest):
        await sessions.open(b"t", Opening("sum", state=refuse))


async def test_a_batch_opens_each_row_by_itself(sessions, store):
    open_session(store, "old")
    store.records[b"bad"] = b"?"
    old, new, bad = await sessions.open_batch([b"old", b"new", b"bad"], NEW)
    assert (old.is_resumed, new.is_resumed) == (True, False)
    assert isinstance(bad, RecordCorrupt)
    again = await sessions.open_batch([b"old", b"new"], NEW)
    assert [one.record for one in again] == [old.record, new.record]
    assert [one.is_resumed for one in again] == [True, False]
    assert (store.load_count, store.commit_count) == (2, 1)


async def test_a_batch_that_meets_other_writers_looks_again(sessions, store):
    commit = store.commit

    async def come_first_and_commit(writes, ttl_s):
        store.commit = commit
        open_session(store, "b")
        return await commit(writes, ttl_s)

    store.commit = come_first_and_commit
    outcomes = await sessions.open_batch([b"a", b"b", b"c"], NEW)
    assert [one.is_resumed for one in outcomes] == [False, True, False]
    assert [decode(store.records[key]) for key in (b"a", b"b", b"c")] == [one.record for one in outcomes]


async def test_a_batch_waits_for_the_servers_level(model, store, engine):
    sessions = Sessions(FakeModels(model), store, engine, ttl_s=60, ack_level=AckLevel.REPLICATED)
    store.unconfirmed = {b"b"}
    outcomes = await sessions.open_batch([b"a", b"b"], NEW)
    assert not isinstance(outcomes[0], ServiceError)
    assert outcomes[1].reason == "ACK_LEVEL_NOT_REACHED"
    store.unconfirmed = set()
    assert [one.is_resumed for one in await sessions.open_batch([b"a", b"b"], NEW)] == [False, False]


async def test_a_name_is_needed_only_where_something_is_made(sessions, store):
    open_session(store, "old")
    old, new = await sessions.open_batch([b"old", b"new"], Opening(""))
    assert old.is_resumed
    assert isinstance(new, SessionNotFound)


def request(ids=("a", "b"), **fields):
    return pb.OpenBatchRequest(session_ids=ids, **{"model": pb.ModelRef(name="sum"), **fields})


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request(()), "session_ids"),
        (request("abcde"), "session_ids"),
        (request(("a", "a")), "session_ids"),
        (request(model=pb.ModelRef()), "model.name"),
        (request(model=pb.ModelRef(name="sum", version=-1)), "model.version"),
    ],
)
def test_a_batch_that_is_wrong_touches_no_session(wrong, field):
    with pytest.raises(InvalidRequest) as caught:
        opening_keys(wrong, "tenant", 4)
    assert caught.value.field == field


def test_a_wrong_id_is_an_error_of_its_row():
    good, bad = opening_keys(request(("a", "b\n")), "tenant", 4)
    assert isinstance(good, bytes)
    assert bad.field == "session_ids[1]"
    reply = opening_reply([bad])
    assert (list(reply.positions), list(reply.incarnations), reply.errors[0].row) == ([0], [0], 0)


@pytest.mark.parametrize(("shape", "count"), [([], 1), ([2], 2), ([3, 2], 6)])
def test_a_state_without_a_row_for_each_session_touches_none(shape, count):
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=bytes(4 * count))
    wrong = request("abcd", initial_state=[pb.NamedTensor(name="sum", tensor=tensor)])
    with pytest.raises(InvalidRequest, match="a row for each of 4 sessions") as caught:
        given_states(wrong)
    assert caught.value.field == "initial_state"


async def test_each_row_of_a_batch_begins_at_its_own_state(sessions):
    await sessions.open(b"old", NEW)
    raw = [np.array([row, 0], np.float32).tobytes() for row in range(3)]
    keys = [b"a", b"old", b"b"]
    opened = await sessions.open_batch(keys, NEW, [lambda _, state=state: state for state in raw])
    assert [one.record.state for one in opened][::2] == raw[::2]
    assert opened[1].record.digest == INITIAL


def test_records_of_tombstones_keep_the_nonce(store):
    record = open_session(store, "s")._replace(nonce=5, deleted=True, state=b"")
    assert decode(encode(record)).nonce == 5
