"""Checkpoints in a store: each is kept beside the record, as long as it, and the record stays as it is."""

import struct

import pytest

from holdfast.errors import RecordCorrupt, StoreFull
from service.store.flag import has_sibling
from service.store.keys import sibling_key
from service.store.protocol import Found, commit_one, load_one_with_cursor
from service.store.record import KeptReply, Record, decode, encode
from tests.contract.test_siblings import beside, put_with, until
from tests.contract.test_store import get, key, put, record

__all__ = ["key"]

MOST = 3


async def save(store, key, of, name="a"):
    return await store.save_checkpoint(key, of.stamp, name, MOST)


async def names(store, key):
    return sorted(head.name for head in await store.list_checkpoints(key))


async def test_a_checkpoint_has_record_and_cursor_and_the_session_goes_on(store, opened, deployment, key):
    replies = (KeptReply(5, 2, 3, 4, b"reply"),)
    first = Record(7, 5, b"f" * 32, bytes(range(256)) * 20, replies, digest=2**53 - 1, nonce=-9)
    await put_with(store, key, first, None, b"five")
    seconds, micros = deployment.primary_of(key).call("TIME")
    saved = await save(store, key, first)
    assert (saved.name, saved.position, saved.digest) == ("a", 5, 2**53 - 1)
    assert 0 <= saved.saved_s - (int(seconds) + int(micros) / 1e6) + 0.001 < 60
    assert saved.size_bytes == 10 + 4 + len(encode(first))
    other = await opened(deployment.url)
    assert await put_with(other, key, record(6), first, b"six") is None
    kept = await other.load_checkpoint(key, "a")
    assert (kept.cursor, kept.record) == (b"five", first)
    assert await store.list_checkpoints(key) == [saved]
    data, cursor = await load_one_with_cursor(store, key)
    assert (decode(data), cursor) == (record(6), b"six")


async def test_a_session_without_a_cursor_has_checkpoints_without_one(store, key):
    await put(store, key, record(1))
    assert not has_sibling((await store.load([key]))[0])
    await save(store, key, record(1), "a name with spaces é")
    assert has_sibling((await store.load([key]))[0])
    assert await load_one_with_cursor(store, key) == ((await store.load([key]))[0], b"")
    kept = await store.load_checkpoint(key, "a name with spaces é")
    assert (kept.cursor, kept.record) == (b"", record(1))
    assert await names(store, key) == ["a name with spaces é"]
    assert await put(store, key, record(2), record(1)) is None
    assert await names(store, key) == ["a name with spaces é"]


async def test_a_record_that_has_moved_on_is_not_kept(store, key, deployment):
    assert await save(store, key, record(1)) == Found(None)
    await put(store, key, record(2))
    assert await save(store, key, record(1)) == Found(encode(record(2)))
    assert beside(deployment, key) == {}
    assert await store.list_checkpoints(key) == []
    assert await store.load_checkpoint(key, "a") is None


async def test_there_are_so_many_and_no_more(store, key):
    await put_with(store, key, record(1), None, b"one")
    for name in ("a", "b", "c"):
        assert (await save(store, key, record(1), name)).name == name
    assert await save(store, key, record(1), "d") is None
    assert (await save(store, key, record(1), "b")).name == "b"
    assert await store.delete_checkpoint(key, "a")
    assert not await store.delete_checkpoint(key, "a")
    assert (await save(store, key, record(1), "d")).name == "d"
    assert await names(store, key) == ["b", "c", "d"]


async def test_a_session_is_put_back_by_a_commit(store, key):
    await put_with(store, key, record(1), None, b"one")
    await save(store, key, record(1), "with")
    await put_with(store, key, record(2), record(1), b"")
    await save(store, key, record(2), "without")
    await put_with(store, key, record(3), record(2), b"three")
    stored = record(3)
    for name, position, cursor in (("with", 1, b"one"), ("without", 2, b""), ("with", 1, b"one")):
        kept = await store.load_checkpoint(key, name)
        back = kept.record._replace(incarnation=stored.incarnation + 1)
        assert await commit_one(store, key, stored.stamp, encode(back), 60, kept.cursor) is None
        assert (await get(store, key), back.position) == (back, position)
        assert (await load_one_with_cursor(store, key))[1] == cursor
        assert isinstance(await put(store, key, record(4), stored), Found)
        stored = back
    assert await names(store, key) == ["with", "without"]


async def test_checkpoints_live_as_long_as_the_record(store, key, deployment):
    primary = deployment.primary_of(key)
    await put(store, key, record(0), ttl_s=1000)
    await save(store, key, record(0))
    assert 900_000 < primary.call("PTTL", sibling_key(key)) <= 1_000_000
    await put(store, key, record(1), record(0), ttl_s=0)
    await save(store, key, record(1), "b")
    assert primary.call("PTTL", sibling_key(key)) == -1
    await put(store, key, record(2), record(1), ttl_s=0.2)
    await until(lambda: not primary.call("EXISTS", key, sibling_key(key)))
    await put(store, key, record(0))
    assert await names(store, key) == []


async def test_they_go_with_the_session(store, key):
    await put(store, key, record(5))
    await save(store, key, record(5))
    tombstone = record(5, state=b"", deleted=True)
    assert await put(store, key, tombstone, record(5)) is None
    assert await put(store, key, record(0, incarnation=9), tombstone) is None
    assert await names(store, key) == []
    await save(store, key, record(0, incarnation=9))
    assert await store.set_aside(key, (await store.load([key]))[0], 60)
    assert await names(store, key) == []


async def test_a_full_store_saves_nothing(store, key, deployment):
    await put(store, key, record(1))
    primary = deployment.primary_of(key)
    primary.call("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreFull):
            await save(store, key, record(1))
        assert await names(store, key) == []
    finally:
        primary.call("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize(
    "value",
    [b"", b"x", bytes(9), struct.pack("<QH", 1, 300), struct.pack("<QH", 1, 2) + b"cu" + bytes(20)],
    ids=len,
)
async def test_what_is_no_checkpoint_is_damage(store, key, deployment, value):
    await put_with(store, key, record(1), None, b"one")
    deployment.primary_of(key).call("HSET", sibling_key(key), "checkpoint:a", value)
    with pytest.raises(RecordCorrupt):
        await store.load_checkpoint(key, "a")
    with pytest.raises(RecordCorrupt):
        await store.list_checkpoints(key)
    assert (await save(store, key, record(1))).position == 1
    assert (await store.load_checkpoint(key, "a")).record == record(1)


async def test_a_damaged_record_is_not_restored(store, key, deployment):
    await put(store, key, record(1))
    await save(store, key, record(1))
    primary = deployment.primary_of(key)
    kept = primary.call("HGET", sibling_key(key), "checkpoint:a")
    primary.call("HSET", sibling_key(key), "checkpoint:a", kept[:-1] + b"?")
    with pytest.raises(RecordCorrupt, match="checksum"):
        await store.load_checkpoint(key, "a")
