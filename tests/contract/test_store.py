"""What every store does, whatever it is and however it is reached."""

import asyncio
import time

import numpy as np
import pytest

from holdfast.errors import RecordCorrupt, StoreFull, StoreUnavailable
from service.store.keys import session_key
from service.store.protocol import AckLevel, Found, Writes
from service.store.record import NO_STAMP, Record, decode, encode
from service.store.slots import slot_of
from tests.support.stores import PASSWORD, URL_PASSWORD, USER


def record(position, *, incarnation=7, state=b"state", deleted=False, digest=1):
    return Record(incarnation, position, bytes(32), state, deleted=deleted, digest=digest)


@pytest.fixture
def key(request):
    return session_key("tenant", request.node.name)


def variants(key, count):
    """Returns keys of as many other sessions, in slots all over a cluster."""
    return [key[:-1] + b" %d}" % row for row in range(count)]


async def put(store, key, new, old=None, ttl_s=60.0):
    """Commits one record where `old` is stored; returns the refusal, if it was refused."""
    expected = old.stamp if old else NO_STAMP
    return (await store.commit([Writes((key,), expected, (encode(new),))], ttl_s)).get(0)


async def get(store, key):
    data = (await store.load([key]))[0]
    return None if data is None else decode(data)


async def eventually(action, timeout_s=20.0):
    """Repeats what the store refuses until it does not."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return await action()
        except StoreUnavailable:
            assert time.monotonic() < deadline_s, "not in time"
            await asyncio.sleep(0.02)


# -- compare and replace ----------------------------------------------------------------------


async def test_a_key_space_of_its_own(deployment, store, opened, key):
    for process in deployment.primaries:
        if process.login:
            process.call("ACL", "SETUSER", USER, "~team.b:v1:*")
    other = await opened(deployment.url, key_prefix="team.b")
    assert await put(store, key, record(0)) is None
    assert await get(other, key) is None
    assert await put(other, key, record(5)) is None
    assert (await get(store, key), await get(other, key)) == (record(0), record(5))
    assert await put(other, key, record(6), record(0)) == Found(encode(record(5)))
    assert 0 < await other.time_to_live_s(key) <= 60
    assert await other.set_aside(key, encode(record(5)), 60)
    assert (await get(store, key), await get(other, key)) == (record(0), None)
    assert await other.confirm([key], AckLevel.REPLICATED, other.epoch) == {}
    place = b"team.b:v1:" + key.removeprefix(b"holdfast:v1:")
    wait, aside = sorted(deployment.primary_of(key).call("KEYS", "team.b:*"), key=len)
    assert wait.startswith(b"team.b:v1:wait")
    assert aside == place + b":set-aside"


async def test_what_is_committed_is_loaded(store, key):
    assert await get(store, key) is None
    assert await put(store, key, record(0)) is None
    assert await get(store, key) == record(0)
    assert await put(store, key, record(3), record(0)) is None
    assert await get(store, key) == record(3)


async def test_nothing_is_read_where_nothing_is_asked_for(store):
    assert await store.load([]) == []


async def test_another_record_is_left_alone_and_shown(store, key):
    await put(store, key, record(5))
    for new, old in (
        (record(4), record(3)),
        (record(6), None),
        (record(6, incarnation=8), record(5, incarnation=8)),
        (record(6), record(5, digest=2)),
    ):
        refusal = await put(store, key, new, old)
        assert isinstance(refusal, Found)
        assert decode(refusal.record) == record(5)
    assert await get(store, key) == record(5)


async def test_a_record_that_is_gone_is_not_made_anew(store, key):
    assert await put(store, key, record(4), record(3)) == Found(None)
    assert await get(store, key) is None


async def test_a_history_that_was_replaced_is_not_built_on(store, key):
    """The store loses position 2, another writer comes there by other tokens: at an equal position."""
    await put(store, key, record(2, digest=22))
    replaced = record(2, state=b"other", digest=33)
    await put(store, key, replaced, record(2, digest=22))
    refusal = await put(store, key, record(3, digest=44), record(2, digest=22))
    assert decode(refusal.record) == replaced
    assert await get(store, key) == replaced


@pytest.mark.parametrize(
    "value", [b"", b"x", bytes(16), bytes(24), bytes(40), encode(record(5))[:39]], ids=len
)
@pytest.mark.parametrize("old", [None, record(5)], ids=["opened", "stepped"])
async def test_what_is_no_record_is_left_as_found(store, key, deployment, value, old):
    deployment.primary_of(key).call("SET", key, value)
    refusal = await put(store, key, record(6), old)
    assert refusal == Found(value)
    assert await store.load([key]) == [value]


async def test_a_tombstone_refuses_what_the_record_allowed(store, key):
    await put(store, key, record(5))
    tombstone = record(5, state=b"", deleted=True)
    assert await put(store, key, tombstone, record(5)) is None
    refusal = await put(store, key, record(6), record(5))
    assert decode(refusal.record) == tombstone
    assert await put(store, key, record(0, incarnation=9), tombstone) is None


async def test_rows_of_a_commit_are_independent(store, key, deployment):
    keys = variants(key, 6)
    await put(store, keys[1], record(1))
    await put(store, keys[2], record(2))
    deployment.primary_of(keys[3]).call("RPUSH", keys[3], "foreign")
    stamps = [NO_STAMP, NO_STAMP, record(2).stamp, NO_STAMP, record(9).stamp, NO_STAMP]
    news = [encode(record(10 + row)) for row in range(6)]
    refusals = await store.commit([Writes(keys, b"".join(stamps), news)], 60.0)
    assert refusals.keys() == {1, 3, 4}
    assert decode(refusals[1].record) == record(1)
    assert isinstance(refusals[3], RecordCorrupt)
    assert refusals[4] == Found(None)
    stored = [await get(store, key) for key in (keys[0], keys[1], keys[2], keys[5])]
    assert stored == [record(10), record(1), record(12), record(15)]
    assert deployment.primary_of(keys[3]).call("LLEN", keys[3]) == 1


async def test_any_bytes_are_kept(store, key):
    key = session_key("tenant", "{}\r\n\0 ключ" + key.decode())
    state = bytes(range(256)) * 20 + b"\r\n$5\r\n"
    assert await put(store, key, record(1, state=state)) is None
    assert (await get(store, key)).state == state


@pytest.mark.parametrize("as_matrix", [True, False])
async def test_large_batches(store, key, as_matrix):
    count = 700
    keys = variants(key, count)
    assert len({slot_of(key) for key in keys}) > 500
    rows = [encode(record(row, state=b"%d" % row + bytes(1200))) for row in range(1000, 1000 + count)]
    records = np.frombuffer(b"".join(rows), np.uint8).reshape(count, -1) if as_matrix else rows
    assert await store.commit([Writes(keys, NO_STAMP * count, records)], 60.0) == {}
    assert await store.load(keys) == rows
    refusals = await store.commit([Writes(keys, NO_STAMP * count, records)], 60.0)
    assert [refusals[row].record for row in range(count)] == rows


async def test_parts_of_a_commit_count_through(store, key):
    keys = variants(key, 4)
    await put(store, keys[2], record(1))
    parts = [
        Writes(keys[:1], NO_STAMP, (encode(record(2)),)),
        Writes(keys[1:], NO_STAMP * 3, [encode(record(3))] * 3),
    ]
    refusals = await store.commit(parts, 60.0)
    assert refusals == {2: Found(encode(record(1)))}


async def test_of_ten_writers_one_wins_each_position(deployment, opened, key):
    stores = [await opened(deployment.url) for _ in range(2)]
    await put(stores[0], key, record(0))
    for position in range(5):
        outcomes = await asyncio.gather(
            *(
                put(stores[writer % 2], key, record(position + 1, state=b"%d" % writer), record(position))
                for writer in range(10)
            )
        )
        assert outcomes.count(None) == 1
        assert (await get(stores[0], key)).state == b"%d" % outcomes.index(None)


# -- expiry -----------------------------------------------------------------------------------


async def test_a_record_expires_by_the_stores_clock(store, key, deployment):
    await put(store, key, record(0), ttl_s=0.3)
    assert 0 < await store.time_to_live_s(key) <= 0.3
    deadline_s = time.monotonic() + 10
    while await get(store, key) is not None:
        assert time.monotonic() < deadline_s, "it does not expire"
        await asyncio.sleep(0.02)
    assert await put(store, key, record(1), record(0)) == Found(None)


async def test_each_commit_sets_the_expiry_anew(store, key):
    await put(store, key, record(0), ttl_s=1000)
    assert 900 < await store.time_to_live_s(key) <= 1000
    await put(store, key, record(1), record(0), ttl_s=5000)
    assert 4900 < await store.time_to_live_s(key) <= 5000
    await put(store, key, record(9), record(0), ttl_s=1)  # refused, so nothing changes
    assert 4900 < await store.time_to_live_s(key) <= 5000
    await put(store, key, record(2), record(1), ttl_s=0)
    assert await store.time_to_live_s(key) == 0
    assert await store.time_to_live_s(key + b"missing") == 0


# -- faults -----------------------------------------------------------------------------------


async def test_a_script_flush_is_not_noticed(store, key, deployment):
    keys = variants(key, 20)
    for position in range(3):
        for primary in deployment.primaries:
            primary.call("SCRIPT", "FLUSH")
        old = record(position - 1).stamp if position else NO_STAMP
        new = [encode(record(position))] * 20
        assert await store.commit([Writes(keys, old * 20, new)], 60.0) == {}


async def test_a_broken_connection_is_made_again(deployment, opened, key):
    changes = []
    store = await opened(deployment.url, on_change=changes.append)
    await put(store, key, record(0))
    epoch = store.epoch
    for primary in deployment.primaries:
        primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await eventually(store.ping)
    assert await eventually(lambda: get(store, key)) == record(0)
    assert changes == [True, False, True]
    assert store.is_available
    assert store.epoch > epoch


async def test_a_late_reply_is_not_taken_for_another(deployment, opened, key):
    store = await opened(deployment.url, timeout_s=0.5)
    [other] = variants(key, 1)
    await put(store, key, record(1, state=b"one"))
    await put(store, other, record(2, state=b"two"))
    stopped = deployment.primary_of(key)
    stopped.pause()
    try:
        with pytest.raises(StoreUnavailable):
            await store.load([key])
    finally:
        stopped.resume()
    for _ in range(20):
        assert (await eventually(lambda: get(store, other))).state == b"two"
        assert (await eventually(lambda: get(store, key))).state == b"one"


async def test_a_commit_without_a_reply_is_unknown_and_is_not_sent_again(deployment, opened, key):
    store = await opened(deployment.url, timeout_s=0.5)
    await put(store, key, record(0))
    stopped = deployment.primary_of(key)
    before = calls_of_scripts(stopped)
    stopped.pause()
    waking = asyncio.create_task(resume_later(stopped, 0.8))
    try:
        refusal = await put(store, key, record(1), record(0))
    except StoreUnavailable as error:
        refusal = error
    await waking
    assert isinstance(refusal, StoreUnavailable)
    assert refusal.retry_after_s > 0
    await eventually(store.ping)
    assert await eventually(lambda: get(store, key)) in (record(0), record(1))
    assert calls_of_scripts(stopped) - before <= 1
    again = await eventually(lambda: put(store, key, record(1), record(0)))
    assert again is None or decode(again.record) == record(1)
    assert await eventually(lambda: get(store, key)) == record(1)


async def resume_later(process, after_s):
    try:
        await asyncio.sleep(after_s)
    finally:
        process.resume()


def calls_of_scripts(process):
    with process.client() as client:
        return client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


async def test_a_full_store_refuses_and_keeps_what_it_has(store, key, deployment):
    keys = variants(key, 30)
    for old in keys[:10]:
        await put(store, old, record(1))
    for primary in deployment.primaries:
        primary.call("CONFIG", "SET", "maxmemory", "1")
    try:
        writes = Writes(keys, record(1).stamp * 10 + NO_STAMP * 20, [encode(record(2))] * 30)
        refusals = await store.commit([writes], 60.0)
        assert refusals.keys() == set(range(30))
        assert all(isinstance(refusal, StoreFull) for refusal in refusals.values())
        assert [await get(store, old) for old in keys[:10]] == [record(1)] * 10
        assert await store.load(keys[10:]) == [None] * 20
    finally:
        for primary in deployment.primaries:
            primary.call("CONFIG", "SET", "maxmemory", "0")
    assert await store.commit([writes], 60.0) == {}


# -- what it is -------------------------------------------------------------------------------


async def test_it_is_safe_and_says_what_it_is(store, deployment):
    await store.check_safe()
    text = await store.describe()
    assert deployment.kind in text
    assert "append-only file" in text
    assert PASSWORD not in text
    assert URL_PASSWORD not in text
