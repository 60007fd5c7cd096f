"""A primary behind sentinels dies, stops, or is cut off; the server goes on with the next one."""

import asyncio
import contextlib
import time

import pytest

from holdfast.errors import StoreUnavailable
from service.store.keys import session_key
from service.store.protocol import Found
from tests.contract.test_store import eventually, get, put, record
from tests.faults import LONG
from tests.faults.streams import survive
from tests.faults.test_regression import refused
from tests.support.server import ServerProcess, value
from tests.support.server import get as page
from tests.support.stores import ADMIN, GROUP, PASSWORD, URL_PASSWORD, USER, deploy_sentinel
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

KINDS = ["valkey", "redis"]
RECOVERY_LIMIT_S = 10.0
"""Generous: a loaded machine must not fail these tests."""


@pytest.fixture(params=KINDS)
def group(request, tmp_path):
    with deploy_sentinel(request.param, tmp_path, down_after_ms=500) as deployed:
        yield deployed


def promoted(group, old):
    """Returns the new primary, once there is one."""
    others = [node for node in group.nodes if node is not old]
    return wait_for(lambda: next((one for one in others if one.call("ROLE")[0] == b"master"), None))


def agreed(group, port):
    """Whether all sentinels name the server on a port as the primary."""
    ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP)
    return all(sentinel.call(*ask)[1] == b"%d" % port for sentinel in group.sentinels)


async def test_a_killed_primary_is_followed_under_load(group, tmp_path):
    (tmp_path / "password").write_text(PASSWORD)
    url = group.url.replace(f":{URL_PASSWORD}@", "@", 1)
    flags = ("--store", url, "--store-password-file", str(tmp_path / "password"))

    async def kill():
        await asyncio.sleep(0.5)
        group.nodes[0].kill()
        await asyncio.to_thread(promoted, group, group.nodes[0])
        promoted_s = time.monotonic()
        while page(server, "/readyz")[0] != 200:
            assert time.monotonic() - promoted_s < RECOVERY_LIMIT_S
            await asyncio.sleep(0.01)
        print(f"ready {time.monotonic() - promoted_s:.2f} s after the promotion")

    with ServerProcess(tmp_path / "data", *flags) as server:
        await survive(server.address, kill())
        assert page(server, "/readyz")[0] == 200
    log = (tmp_path / "data" / "server.log").read_text()
    assert "append-only file" in log
    assert PASSWORD not in log


def cut_off(primary):
    """Cuts a primary off from sentinels and replicas, who log in as the administrator, but not from us."""
    with primary.client() as client:
        client.acl_setuser(
            "other", enabled=True, passwords=["+x"], keys=["*"], channels=["*"], categories=["+@all"]
        )
    primary.login = {"username": "other", "password": "x"}
    primary.call("ACL", "SETUSER", ADMIN, "off")
    primary.call("CLIENT", "KILL", "USER", ADMIN)


def let_back(old, new):
    """Lets a primary that was cut off follow the one that has taken its place."""
    old.call("ACL", "SETUSER", ADMIN, "on")
    old.call("REPLICAOF", "127.0.0.1", new.port)
    wait_for(lambda: old.info().get("master_link_status") == "up")


@pytest.mark.parametrize("level", ["memory", "replicated"])
@pytest.mark.parametrize("group", KINDS if LONG else KINDS[:1], indirect=True)
async def test_a_partition_under_load_loses_nothing_that_was_acknowledged(group, tmp_path, level):
    """For a while both sides have a primary, and the server writes to the one that will lose it all."""
    old = group.nodes[0]
    flags = ["--store", group.url, "--ack-level", level]
    flags += ["--replicas-required", "1", "--ack-timeout-s", "0.3"]

    def part():
        wait_for(lambda: value(server, "holdfast_chunks_total") > 50)
        cut_off(old)
        new = promoted(group, old)
        wait_for(lambda: b"user=" + USER.encode() in new.call("CLIENT", "LIST"))
        let_back(old, new)

    with ServerProcess(tmp_path / "data", *flags) as server:
        await survive(server.address, asyncio.to_thread(part))
        if level == "memory":
            assert refused(server, "STORE_REGRESSED") > 0, "the old primary took no writes"
        else:
            assert refused(server, "STORE_REGRESSED") == refused(server, "SESSION_LOST") == 0
            assert refused(server, "ACK_LEVEL_NOT_REACHED") > 0, "the old primary took no writes"


async def test_a_primary_that_is_cut_off_from_the_sentinels_is_left(group, opened):
    """It answers us all the time, so only the sentinels can tell."""
    old, key = group.nodes[0], session_key("tenant", "s")
    store = await opened(group.url)
    await put(store, key, record(0))
    assert old.call("WAIT", 1, 5000) == 1
    epoch = store.epoch
    cut_off(old)
    new = await asyncio.to_thread(promoted, group, old)
    promoted_s = time.monotonic()
    while store.epoch == epoch:
        assert time.monotonic() - promoted_s < RECOVERY_LIMIT_S
        with contextlib.suppress(StoreUnavailable):  # one may be under way when it is left
            assert isinstance(await put(store, key, record(1), record(5)), Found), "it answers"
        await asyncio.sleep(0.01)
    print(f"left {time.monotonic() - promoted_s:.2f} s after the promotion")
    assert old.call("ROLE")[0] == b"master"
    await eventually(store.ping)
    assert await put(store, key, record(1), record(0)) is None
    assert new.call("GETRANGE", key, 16, 39) == record(1).stamp
    assert old.call("GETRANGE", key, 16, 39) == record(0).stamp


async def test_a_primary_that_was_stopped_is_not_written_to_when_it_wakes(group, opened):
    old, key = group.nodes[0], session_key("tenant", "s")
    store = await opened(group.url, timeout_s=0.5)
    try:
        await put(store, key, record(0))
        assert old.call("WAIT", 1, 5000) == 1
        old.pause()
        new = await asyncio.to_thread(promoted, group, old)
        await asyncio.to_thread(wait_for, lambda: agreed(group, new.port))
        await asyncio.to_thread(wait_for, lambda: store.epoch)  # it leaves by itself
        old.resume()
        await eventually(store.ping)
        for position in range(20):
            outcome = await eventually(lambda p=position: put(store, key, record(p + 1), record(p)))
            assert outcome is None
        assert await get(store, key) == record(20)
        assert new.call("GETRANGE", key, 16, 39) == record(20).stamp
    finally:
        old.resume()


async def test_a_replica_that_the_sentinels_still_name_is_not_used(group, opened):
    primary, replica = group.nodes
    primary.call("REPLICAOF", "127.0.0.1", replica.port)
    with pytest.raises(StoreUnavailable, match="it is not a primary"):
        await opened(group.url, timeout_s=2.0)


async def test_two_of_three_sentinels_are_enough(group, opened):
    group.sentinels[0].pause()
    try:
        store = await opened(group.url, timeout_s=1.0)
        assert await put(store, session_key("tenant", "s"), record(0)) is None
    finally:
        group.sentinels[0].resume()
