"""Fail-over and moving slots in a cluster under load: no caller sees an error, no token is lost."""

import asyncio
import time

import pytest

from service.store.keys import session_key
from service.store.slots import slot_of
from tests.faults.streams import SESSIONS, survive
from tests.support.server import ServerProcess
from tests.support.server import get as page
from tests.support.stores import deploy_cluster, move_keys, move_slot, start_moving
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(params=["valkey", "redis"])
def cluster(request, tmp_path):
    with deploy_cluster(
        request.param, tmp_path, node_timeout_ms=1000, fenced=False, replicas=1
    ) as deployed:
        yield deployed


@pytest.fixture
def server(cluster, tmp_path):
    with ServerProcess(tmp_path / "data", "--store", cluster.url) as server:
        yield server


def is_primary(process):
    return process.call("ROLE")[0] == b"master"


async def test_a_planned_failover_under_load(cluster, server):
    async def fail_over():
        for replica in cluster.processes[3:]:
            await asyncio.sleep(0.3)
            replica.call("CLUSTER", "FAILOVER")
            await asyncio.to_thread(wait_for, lambda replica=replica: is_primary(replica))

    await survive(server.address, fail_over())
    assert page(server, "/readyz")[0] == 200


async def test_a_killed_primary_under_load(cluster, server):
    async def kill():
        await asyncio.sleep(0.5)
        cluster.processes[0].kill()
        await asyncio.to_thread(wait_for, lambda: is_primary(cluster.processes[3]))
        promoted_s = time.monotonic()
        await asyncio.to_thread(wait_for, lambda: page(server, "/readyz")[0] == 200)
        print(f"ready {time.monotonic() - promoted_s:.2f} s after the promotion")

    await survive(server.address, kill())


async def test_slots_move_under_load(cluster, server):
    keys = [session_key("default", f"s{number}") for number in range(SESSIONS)]

    async def migrate():
        await asyncio.sleep(0.3)
        for key in keys:
            await asyncio.to_thread(migrate_slot, cluster, slot_of(key))

    await survive(server.address, migrate())
    stored = [cluster.primary_of(key).call("EXISTS", key) for key in keys]
    assert stored == [1] * SESSIONS, "the sessions had other keys, so their slots were not moved"


def migrate_slot(cluster, slot):
    """Moves a slot with its keys to the next primary, as an operator's tool does."""
    primaries = cluster.processes[:3]
    source = next(one for one in primaries if owns(one, slot))
    target = primaries[(primaries.index(source) + 1) % 3]
    if cluster.kind == "valkey" and slot % 2:  # Valkey 9 moves a slot in one piece, if it is asked to
        target_id = target.call("CLUSTER", "MYID")
        source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)
        wait_for(lambda: owns(target, slot))
        return
    start_moving(slot, source, target)
    time.sleep(0.01)  # steps meet the slot while it is marked, before its keys go and after
    move_keys(slot, source, target)
    time.sleep(0.01)
    [other] = [one for one in primaries if one not in (source, target)]
    move_slot(slot, source, target, others=[other])


def owns(process, slot):
    node_id = process.call("CLUSTER", "MYID")
    return any(
        first <= slot <= last and primary[2] == node_id
        for first, last, primary, *_ in process.call("CLUSTER", "SLOTS")
    )
