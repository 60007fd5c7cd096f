"""What lies beside a record: it is written, kept, moved on and taken away with it, in one atomic act."""

import asyncio
import time

import pytest

from holdfast.errors import RecordCorrupt, StoreFull, StoreUnavailable
from service.store.flag import has_sibling, without_flag
from service.store.keys import sibling_key
from service.store.protocol import Found, Writes, commit_one, load_cursors, load_one_with_cursor
from service.store.record import NO_STAMP, decode, encode
from service.store.slots import slot_of
from tests.contract.test_store import eventually, get, key, put, record, resume_later, variants
from tests.support.stores import ADMIN, ADMIN_PASSWORD, deploy, move_keys, move_slot, start_moving

__all__ = ["key"]


async def put_with(store, key, new, old, cursor, ttl_s=60.0):
    expected = old.stamp if old else NO_STAMP
    return await commit_one(store, key, expected, encode(new), ttl_s, cursor)


async def cursor_of(store, key):
    return (await load_one_with_cursor(store, key))[1]


async def until(is_so, timeout_s=10.0):
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, "not in time"
        await asyncio.sleep(0.02)


def beside(deployment, key):
    """Returns the hash beside a record as the store has it."""
    fields = deployment.primary_of(key).call("HGETALL", sibling_key(key))
    if isinstance(fields, dict):
        return fields
    return dict(zip(fields[::2], fields[1::2], strict=True))


async def test_a_cursor_comes_with_its_record_and_stays_until_another_one_comes(store, key, deployment):
    assert await put(store, key, record(0)) is None
    assert await cursor_of(store, key) == b""
    for position, cursor, expected in (
        (1, b"a\0\r\n", b"a\0\r\n"),
        (2, None, b"a\0\r\n"),
        (3, bytes(range(256)), bytes(range(256))),
        (4, b"", b""),
        (5, b"=", b"="),
    ):
        assert await put_with(store, key, record(position), record(position - 1), cursor) is None
        assert await load_one_with_cursor(store, key) != (None, b"")
        assert (await get(store, key), await cursor_of(store, key)) == (record(position), expected)
    assert beside(deployment, key) == {b"cursor": b"="}


async def test_a_record_that_is_refused_leaves_the_cursor(store, key):
    await put_with(store, key, record(1), None, b"one")
    refusal = await put_with(store, key, record(3), record(2), b"three")
    assert isinstance(refusal, Found)
    assert decode(refusal.record) == record(1)
    assert await cursor_of(store, key) == b"one"


async def test_only_a_record_with_a_sibling_is_read_again(store, key):
    keys = variants(key, 3)
    await put(store, keys[0], record(1))
    await put_with(store, keys[1], record(1), None, b"one")
    found = dict(zip(keys, await store.load(keys), strict=True))
    assert [data is not None and has_sibling(data) for data in found.values()] == [False, True, False]
    assert without_flag(found[keys[1]]) == encode(record(1))
    await put_with(store, keys[1], record(2), record(1), b"two")
    read = await load_cursors(store, found)
    assert [(data and decode(data).position, cursor) for data, cursor in read.values()] == [
        (1, b""),
        (2, b"two"),
        (None, b""),
    ]


async def test_a_batch_mixes_sessions_with_cursors_and_without(store, key):
    keys = variants(key, 40)
    cursors = [None if row % 3 else b"%d" % row for row in range(40)]
    parts = [
        Writes(keys[:20], NO_STAMP * 20, [encode(record(1))] * 20, cursors[:20]),
        Writes(keys[20:30], NO_STAMP * 10, [encode(record(1))] * 10),
        Writes(keys[30:], NO_STAMP * 10, [encode(record(1))] * 10, cursors[30:]),
    ]
    assert await store.commit(parts, 60.0) == {}
    read = await load_cursors(store, dict(zip(keys, await store.load(keys), strict=True)))
    expected = [b"" if row % 3 or 20 <= row < 30 else b"%d" % row for row in range(40)]
    assert [cursor for _, cursor in read.values()] == expected
    assert {decode(data).position for data, _ in read.values()} == {1}


async def test_what_lies_beside_expires_with_the_record(store, key, deployment):
    primary = deployment.primary_of(key)
    await put_with(store, key, record(0), None, b"zero", ttl_s=1000)
    assert 900_000 < primary.call("PTTL", sibling_key(key)) <= 1_000_000
    await put(store, key, record(1), record(0), ttl_s=5000)
    assert 4_900_000 < primary.call("PTTL", sibling_key(key)) <= 5_000_000
    await put(store, key, record(2), record(1), ttl_s=0)
    assert primary.call("PTTL", sibling_key(key)) == -1
    await put_with(store, key, record(3), record(2), b"three", ttl_s=0.2)
    await until(lambda: not primary.call("EXISTS", key, sibling_key(key)))


async def test_a_tombstone_takes_it_away(store, key, deployment):
    await put_with(store, key, record(5), None, b"five")
    tombstone = record(5, state=b"", deleted=True)
    assert await put(store, key, tombstone, record(5)) is None
    assert beside(deployment, key) == {}
    assert not has_sibling((await store.load([key]))[0])
    assert await put(store, key, record(0, incarnation=9), tombstone) is None
    assert await cursor_of(store, key) == b""


async def test_a_record_that_is_set_aside_takes_it_away(store, key, deployment):
    await put_with(store, key, record(5), None, b"five")
    [data] = await store.load([key])
    assert not await store.set_aside(key, encode(record(5)), 60)
    assert beside(deployment, key) == {b"cursor": b"five"}
    assert await store.set_aside(key, data, 60)
    assert beside(deployment, key) == {}


@pytest.mark.parametrize("cursor", [None, b"new"])
async def test_a_new_session_inherits_nothing(store, key, deployment, cursor):
    """A record may go and leave its sibling, where somebody deletes keys by hand."""
    await put_with(store, key, record(5), None, b"five")
    deployment.primary_of(key).call("DEL", key)
    assert await put_with(store, key, record(0), None, cursor) is None
    assert await cursor_of(store, key) == (cursor or b"")
    assert beside(deployment, key) == ({b"cursor": cursor} if cursor else {})


async def test_a_writer_that_knows_nothing_of_the_sibling_goes_on(store, opened, deployment, key):
    """As a replica that has the session in memory while another one stores a cursor."""
    await put(store, key, record(1))
    await put_with(store, key, record(2), record(1), b"two")
    other = await opened(deployment.url)
    assert await put(other, key, record(3), record(2)) is None
    assert await cursor_of(store, key) == b"two"


async def test_what_is_no_hash_is_left_as_found(store, key, deployment):
    primary = deployment.primary_of(key)
    await put(store, key, record(1))
    primary.call("SET", sibling_key(key), "foreign")
    with pytest.raises(RecordCorrupt):
        await put_with(store, key, record(2), record(1), b"two")
    assert await get(store, key) == record(1)
    assert primary.call("GET", sibling_key(key)) == b"foreign"


async def test_a_cursor_without_a_reply_is_stored_if_its_record_is(deployment, opened, key):
    store = await opened(deployment.url, timeout_s=0.5)
    await put_with(store, key, record(0), None, b"zero")
    stopped = deployment.primary_of(key)
    stopped.pause()
    waking = asyncio.create_task(resume_later(stopped, 0.8))
    with pytest.raises(StoreUnavailable):
        await put_with(store, key, record(1), record(0), b"one")
    await waking
    await eventually(store.ping)
    data, cursor = await eventually(lambda: load_one_with_cursor(store, key))
    assert (decode(data).position, cursor) in ((0, b"zero"), (1, b"one"))


async def test_a_full_store_refuses_cursors_and_keeps_what_it_has(store, key, deployment):
    await put_with(store, key, record(1), None, b"one")
    primary = deployment.primary_of(key)
    primary.call("CONFIG", "SET", "maxmemory", "1")
    try:
        for cursor in (b"two", None, b""):
            with pytest.raises(StoreFull):
                await put_with(store, key, record(2), record(1), cursor)
    finally:
        primary.call("CONFIG", "SET", "maxmemory", "0")
    assert (await get(store, key), await cursor_of(store, key)) == (record(1), b"one")


@pytest.fixture(params=["valkey", "redis"])
def cluster(request, tmp_path):
    with deploy(request.param, "cluster", tmp_path) as deployed:
        yield deployed


async def test_a_slot_on_the_move_parts_no_record_from_its_cursor(cluster, opened, key):
    """Its keys go one by one; meanwhile a commit writes record and cursor, or neither."""
    store = await opened(cluster.url)
    source, slot = cluster.primary_of(key), slot_of(key)
    target, other = (one for one in cluster.primaries if one is not source)
    [bare] = [b"holdfast:v1:" + key[key.index(b"{") :] + b"-"]  # in the same slot
    await put_with(store, key, record(1), None, b"one")
    await put(store, bare, record(1))
    start_moving(slot, source, target)
    assert await put_with(store, key, record(2), record(1), b"two") is None  # both are still there
    with pytest.raises(StoreUnavailable, match="being moved"):  # it would have to be made on the other node
        await put_with(store, bare, record(2), record(1), b"two")
    assert await get(store, bare) == record(1)
    assert await put(store, bare, record(2), record(1)) is None
    move_key(sibling_key(key), source, target)
    with pytest.raises(StoreUnavailable):
        await put_with(store, key, record(3), record(2), b"three")
    refusal = await put(store, key, record(2, state=b"", deleted=True), record(2))
    assert isinstance(refusal, StoreUnavailable)
    assert await put(store, key, record(3), record(2)) is None
    move_keys(slot, source, target)
    assert await put_with(store, key, record(4), record(3), b"four") is None
    assert await put_with(store, bare, record(3), record(2), b"three") is None
    move_slot(slot, source, target, others=[other])
    assert await put(store, key, record(5), record(4)) is None
    assert (await get(store, key), await cursor_of(store, key)) == (record(5), b"four")
    assert await cursor_of(store, bare) == b"three"


def move_key(key, source, target):
    login = ("AUTH2", ADMIN, ADMIN_PASSWORD) if source.login else ()
    source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *login, "KEYS", key)
