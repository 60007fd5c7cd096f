"""Every error of a store, provoked in a real one: what the caller gets, and what the operator reads."""

import asyncio
import itertools
import random
import resource
import shutil
import threading

import pytest
import redis

from holdfast.errors import ServiceError, StoreFull, StoreUnavailable
from service.store.keys import session_key
from service.store.protocol import UnsafeStore, Writes
from service.store.record import NO_STAMP, encode
from service.store.slots import slot_of
from tests.contract.test_store import eventually, get, put, record
from tests.support.stores import (
    StoreProcess,
    deploy_cluster,
    free_port,
    move_keys,
    move_slot,
    start_moving,
    tls_options,
    write_certificates,
)
from tests.support.waiting import wait_for

KEY = session_key("tenant", "s")


@pytest.fixture(params=["valkey", "redis"])
def kind(request):
    return request.param


@pytest.fixture
def start(kind, tmp_path):
    """Starts servers that are killed after the test."""
    started = []

    def start_(*options, name="store", **kwargs):
        started.append(StoreProcess(kind, tmp_path / name, *options, **kwargs))
        return started[-1]

    yield start_
    for process in started:
        process.kill()


async def refused(store, old=None):
    """Commits a record, and returns the error."""
    try:
        refusal = await put(store, KEY, record(old.position + 1 if old else 0), old)
    except ServiceError as error:
        return error
    assert isinstance(refusal, ServiceError), refusal
    return refusal


async def applied(store, key, new, old=None):
    """Commits a record, and raises the error if there is one."""
    refusal = await put(store, key, new, old)
    if isinstance(refusal, ServiceError):
        raise refusal
    assert refusal is None


async def assert_unavailable(outcome, *words):
    error = await outcome
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after_s > 0
    for word in words:
        assert word in error.message


async def failure(coroutine):
    with pytest.raises(ServiceError) as raised:
        await coroutine
    return raised.value


async def test_out_of_memory(start, opened):
    server = start()
    store = await opened(server.url)
    server.call("CONFIG", "SET", "maxmemory", "1")
    error = await refused(store)
    assert isinstance(error, StoreFull)
    assert "raise maxmemory" in error.message


async def test_a_snapshot_that_failed_stops_writes(start, opened):
    server = start("--save", "3600 1")
    store = await opened(server.url)
    await put(store, KEY, record(0))
    shutil.rmtree(server.folder)
    server.call("BGSAVE")
    await asyncio.to_thread(wait_for, lambda: server.info()["rdb_last_bgsave_status"] == "err")
    await assert_unavailable(refused(store, record(0)), "MISCONF", "make room")
    assert await get(store, KEY) == record(0)
    with pytest.raises(UnsafeStore, match=r"snapshot failed.*--allow-volatile-store"):
        await store.check_safe()
    server.call("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    await store.check_safe()
    assert await put(store, KEY, record(1), record(0)) is None


async def test_a_full_disk_stops_writes_until_there_is_room(start, opened):
    """The file may not grow, as on a full disk."""
    server = start("--appendfsync", "always", restore_signals=False)
    store = await opened(server.url)
    await put(store, KEY, record(0))
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    server.call("CONFIG", "SET", "appendfsync", "everysec")  # with always it would end itself
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (200, hard))
    position = 0
    while not isinstance(
        refusal := await put(store, KEY, record(position + 1), record(position)), ServiceError
    ):
        position += 1
        await asyncio.sleep(0.01)
    assert "MISCONF" in refusal.message
    with pytest.raises(UnsafeStore, match="writing the append-only file fails"):
        await store.check_safe()
    assert await get(store, KEY) == record(position)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))

    await eventually(lambda: applied(store, KEY, record(position + 1), record(position)))
    await store.check_safe()


async def test_a_replica_takes_no_writes(start, opened):
    server = start()
    store = await opened(server.url)
    await put(store, KEY, record(0))
    epoch = store.epoch
    server.call("REPLICAOF", "127.0.0.1", free_port())
    await assert_unavailable(refused(store, record(0)), "READONLY", "replica")
    assert store.epoch > epoch
    await eventually(store.ping)
    with pytest.raises(UnsafeStore, match=r"replica.*use the primary"):
        await store.check_safe()


async def test_a_replica_without_its_primary(start, opened):
    server = start("--replica-serve-stale-data", "no")
    store = await opened(server.url)
    server.call("REPLICAOF", "127.0.0.1", free_port())
    await assert_unavailable(failure(store.load([KEY])), "MASTERDOWN", "primary is looked for")


async def test_a_wait_that_a_demotion_ends(start, opened):
    server = start()
    store = await opened(server.url)
    waiting = asyncio.create_task(failure(store._topology.nodes[0].ask("BLPOP", "holdfast:v1:list", 10)))
    await asyncio.to_thread(wait_for, lambda: server.info()["blocked_clients"])
    server.call("REPLICAOF", "127.0.0.1", free_port())
    await assert_unavailable(waiting, "UNBLOCKED", "became a replica")


async def test_a_store_that_still_reads_its_file(start, opened):
    server = start()
    with server.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(3000):
            pipeline.set(f"holdfast:v1:{{t:{number}}}", bytes(100))
        pipeline.execute()
    server.kill()
    server.options += ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    server.start(wait=False)

    async def loading():
        try:
            await opened(server.url)
        except StoreUnavailable as error:
            return error.message
        return "ready"

    said = set()
    while "ready" not in said:
        said.add(await loading())
    assert any("LOADING" in text and "reads its data" in text for text in said)


async def test_a_script_that_runs_for_too_long(start, opened):
    server = start("--busy-reply-threshold", "50")
    store = await opened(server.url)

    def block():
        with server.client() as client, pytest.raises(redis.RedisError):
            client.eval("while true do end", 0)

    blocker = threading.Thread(target=block)
    blocker.start()
    try:
        while True:
            try:
                await store.load([KEY])
            except StoreUnavailable as error:
                await assert_unavailable(asyncio.sleep(0, error), "BUSY", "script of another client")
                break
    finally:
        server.call("SCRIPT", "KILL")
        await asyncio.to_thread(blocker.join)
    await eventually(lambda: applied(store, KEY, record(0)))


async def test_too_few_replicas(start, opened):
    server = start()
    store = await opened(server.url)
    server.call("CONFIG", "SET", "min-replicas-to-write", "1")
    await assert_unavailable(refused(store), "NOREPLICAS", "min-replicas-to-write")


async def test_passwords(start, opened, tmp_path):
    server = start()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "h", "on", ">right", "~*", "+@all")
        client.config_set("requirepass", "right")
    at = f"127.0.0.1:{server.port}"
    await assert_unavailable(failure(opened(f"redis://{at}")), "NOAUTH", "--store-password-file")
    for url in (f"redis://h:wrong-secret@{at}", f"redis://:wrong-secret@{at}"):
        await assert_unavailable(failure(opened(url)), "WRONGPASS", "user or password is wrong")
        assert "wrong-secret" not in (await failure(opened(url))).message
    file = tmp_path / "password"
    file.write_text("right\n")
    store = await opened(f"redis://h@{at}", password_file=file)
    assert await put(store, KEY, record(0)) is None
    server.login = {"password": "right"}
    server.call("ACL", "SETUSER", "h", "resetpass", ">new")  # which ends its connections
    file.write_text("new")
    server.call("CLIENT", "KILL", "USER", "h")
    await eventually(store.ping)
    assert await get(store, KEY) == record(0)


async def test_a_user_who_may_not(start, opened):
    server = start()
    server.call("ACL", "SETUSER", "h", "on", "nopass", "~*", "+@all", "-evalsha", "-mget")
    store = await opened(f"redis://h:x@127.0.0.1:{server.port}")
    await assert_unavailable(refused(store), "NOPERM", "evalsha", "holdfast store acl")
    await assert_unavailable(failure(store.load([KEY])), "NOPERM", "holdfast store acl")


async def test_a_user_who_may_not_touch_the_keys(start, opened):
    server = start()
    server.call("ACL", "SETUSER", "h", "on", "nopass", "~other:*", "+@all")
    store = await opened(f"redis://h:x@127.0.0.1:{server.port}")
    await assert_unavailable(refused(store), "NOPERM", "holdfast store acl")


async def test_no_connection_left(start, opened):
    server = start()
    with server.client() as client:
        client.config_set("maxclients", 1)
        await assert_unavailable(failure(opened(server.url)), "max number of clients", "raise maxclients")


async def test_a_command_it_does_not_know(start, opened):
    server = start("--rename-command", "EVALSHA", "")
    store = await opened(server.url)
    await assert_unavailable(refused(store), "unknown command", "must be Redis 7 or Valkey")


async def test_a_store_without_tls_is_told_from_one_with(start, opened):
    server = start()
    await assert_unavailable(failure(opened(f"rediss://127.0.0.1:{server.port}", timeout_s=1)), "connect")


async def test_a_certificate_of_somebody_else(opened, tmp_path):
    write_certificates(tmp_path / "theirs")
    write_certificates(tmp_path / "ours")
    port = free_port()
    options = tls_options(tmp_path / "theirs", port, wants_client=False)
    theirs, ours = (f"{tmp_path}/{name}/ca.pem" for name in ("theirs", "ours"))
    url = f"rediss://localhost:{port}?ssl_ca_certs="
    with StoreProcess("redis", tmp_path / "store", *options, port=0, url=url + theirs):
        await assert_unavailable(failure(opened(url + ours)), "certificate verify failed")
        other_name = url.replace("localhost", "127.0.0.1")
        await assert_unavailable(failure(opened(other_name + theirs)), "certificate verify failed")
        store = await opened(other_name + theirs + "&ssl_check_hostname=false")
        assert await put(store, KEY, record(0)) is None


# -- clusters ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["valkey", "redis"])
def cluster(request, tmp_path_factory):
    with deploy_cluster(request.param, tmp_path_factory.mktemp("cluster"), fenced=False) as deployed:
        yield deployed


def nodes_of(cluster, key):
    """Returns the primary of a key's slot, and the other nodes."""
    owner = cluster.primary_of(key)
    return owner, [one for one in cluster.processes if one is not owner]


def test_slots_are_those_of_the_server(cluster):
    rng = random.Random(1)
    keys = [bytes(rng.choices(b"ab{}", k=rng.randrange(12))) for _ in range(200)]
    assert [slot_of(key) for key in keys] == [
        cluster.processes[0].call("CLUSTER", "KEYSLOT", key) for key in keys
    ]


async def test_a_slot_that_has_moved(cluster, opened):
    key = session_key("tenant", "moved")
    store = await opened(cluster.url)
    await put(store, key, record(0))
    owner, [target, other] = nodes_of(cluster, key)
    start_moving(slot_of(key), owner, target)
    move_keys(slot_of(key), owner, target)
    move_slot(slot_of(key), owner, target, others=[other])
    epoch = store.epoch
    assert await put(store, key, record(1), record(0)) is None
    assert store.epoch > epoch
    assert await get(store, key) == record(1)
    assert store.is_available


async def test_a_slot_on_its_way(cluster, opened):
    keys = [session_key("tenant", f"on its way {number}") for number in range(20)]
    store = await opened(cluster.url)
    slot = slot_of(keys[0])
    owner, [target, other] = nodes_of(cluster, keys[0])
    for key in keys:
        await put(store, key, record(0))
    start_moving(slot, owner, target)
    assert [await put(store, key, record(1), record(0)) for key in keys] == [None] * 20  # not moved yet
    move_keys(slot, owner, target)
    assert [await put(store, key, record(2), record(1)) for key in keys] == [None] * 20  # asked for
    assert [await get(store, key) for key in keys] == [record(2)] * 20
    names = (session_key("tenant", f"new {number}") for number in itertools.count())
    new = next(name for name in names if slot_of(name) == slot)
    assert await put(store, new, record(0)) is None  # a new session in such a slot goes to the target
    target.call("CLUSTER", "SETSLOT", slot, "NODE", target.call("CLUSTER", "MYID"))
    move_slot(slot, owner, target, others=[other])
    assert await get(store, new) == record(0)
    assert await get(store, keys[0]) == record(2)


def has_forgotten(node, slot):
    """Whether a node knows no owner of a slot; one that a late message has told again forgets it."""
    if all(not first <= slot <= last for first, last, *_ in node.call("CLUSTER", "SLOTS")):
        return True
    node.call("CLUSTER", "DELSLOTS", slot)
    return False


async def test_a_slot_that_nobody_serves(cluster, opened):
    key = session_key("tenant", "nobody")
    store = await opened(cluster.url)
    assert await put(store, key, record(0)) is None
    owner, others = nodes_of(cluster, key)
    slot = slot_of(key)
    for process in (owner, *others):
        process.call("CLUSTER", "DELSLOTS", slot)
    try:
        await asyncio.to_thread(
            wait_for, lambda: all(has_forgotten(node, slot) for node in cluster.processes)
        )
        with pytest.raises(StoreUnavailable) as raised:
            await store.load([key])
        assert "CLUSTERDOWN" in raised.value.message or "no primary" in raised.value.message
        refusal = await put(store, key, record(1), record(0))
        assert isinstance(refusal, StoreUnavailable)
        await asyncio.to_thread(wait_for, lambda: not store.is_available)
        with pytest.raises(StoreUnavailable, match="not every slot"):
            await opened(cluster.url)
    finally:
        for process in (owner, *others):
            process.call("CLUSTER", "ADDSLOTS", slot) if process is owner else None
            process.call("CLUSTER", "SETSLOT", slot, "NODE", owner.call("CLUSTER", "MYID"))
    await eventually(lambda: applied(store, key, record(1), record(0)))


async def test_a_silent_node_fails_its_own_rows_only(cluster, opened):
    store = await opened(cluster.url, timeout_s=0.5)
    keys = [session_key("tenant", f"silent {number}") for number in range(30)]
    silent = cluster.processes[0]
    lost = [key for key in keys if cluster.primary_of(key) is silent]
    assert 0 < len(lost) < len(keys)
    writes = Writes(keys, NO_STAMP * 30, [encode(record(0))] * 30)
    silent.pause()
    try:
        refusals = await store.commit([writes], 60.0)
        assert [keys[number] for number in sorted(refusals)] == lost
        loaded = await store.load(keys)
        assert [
            key for key, data in zip(keys, loaded, strict=True) if isinstance(data, ServiceError)
        ] == lost
        assert not store.is_available
    finally:
        silent.resume()
    await eventually(store.ping)
    for key in keys:
        stored = await eventually(lambda key=key: get(store, key))
        assert stored in (record(0), None)  # None: it had not read the commit


async def test_a_cluster_that_was_named_as_a_single_server(cluster, opened):
    store = await opened(cluster.processes[0].url)
    with pytest.raises(UnsafeStore, match=r"use redis\+cluster://"):
        await store.check_safe()
    keys = [session_key("tenant", str(number)) for number in range(2)]
    await assert_unavailable(failure(store.load(keys)), "CROSSSLOT", "redis+cluster://")


async def test_a_single_server_that_was_named_as_a_cluster(start, opened):
    await assert_unavailable(
        failure(opened(start().url.replace("redis:", "redis+cluster:"))), "cluster support disabled"
    )


async def test_a_call_that_is_tried_again(opened):
    """A node that says TRYAGAIN, which real ones say only to calls with several keys."""
    seen = []

    async def answer(reader, writer):
        port = writer.get_extra_info("sockname")[1]
        try:
            while line := await reader.readline():
                words = [
                    (await reader.readline(), await reader.readline())[1].strip()
                    for _ in range(int(line[1:]))
                ]
                seen.append(words[0])
                if words[0] == b"PING":
                    writer.write(b"+PONG\r\n")
                elif words[0] == b"CLUSTER":
                    writer.write(
                        b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$1\r\nx\r\n" % port
                    )
                elif seen.count(b"MGET") < 3:
                    writer.write(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
                else:
                    writer.write(b"*1\r\n$-1\r\n")
        finally:
            writer.close()

    fake = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with fake:
        store = await opened(f"redis+cluster://127.0.0.1:{fake.sockets[0].getsockname()[1]}")
        assert await store.load([KEY]) == [None]
        assert seen.count(b"MGET") == 3
        await store.close()
