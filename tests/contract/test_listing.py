"""Every store lists its keys a few at a time, whatever it is, and names those who hold them."""

import pytest

from holdfast.errors import StoreUnavailable
from service.store.keys import session_id_of, session_key, session_pattern
from service.store.protocol import Writes
from service.store.record import NO_STAMP, Record, encode
from tests.contract.test_store import eventually
from tests.support.stores import StoreProcess
from tests.support.waiting import wait_for

NASTY = [
    "*",
    "?",
    "[a-c]",
    "\\",
    "a*b",
    "[",
    "]",
    "^a",
    "a-c",
    "}",
    "{",
    "}:set-aside",
    "é [ü]*",
    "b",
    "a}b*c",
]
"""Ids, and prefixes of ids, that mean something else to SCAN, to a cluster, or beside a record."""


def record(position, **fields):
    return Record(7, position, bytes(32), b"state", **{"digest": position + 1, **fields})


@pytest.fixture
def tenant(request):
    """A tenant of this test, whose name others begin or end with."""
    return f"{abs(hash(request.node.name))}.t"


async def put(store, tenant, ids, *, ttl_s=60.0, **fields):
    keys = [session_key(tenant, session_id) for session_id in ids]
    records = [encode(record(number, **fields)) for number in range(len(keys))]
    assert await store.commit([Writes(keys, NO_STAMP * len(keys), records)], ttl_s) == {}


async def listed(store, tenant, prefix="", count=10):
    """Returns the ids that a whole list gives, as often as it gives them, and the places on the way."""
    found, place, places = [], store.first_place(), []
    while place is not None:
        places.append(place)
        keys, place = await store.scan(session_pattern(tenant, prefix), place, count)
        found += map(session_id_of, keys)
    return found, places


async def test_every_session_of_a_tenant_is_listed_and_no_other(store, tenant, deployment):
    ids = [f"session {number}" for number in range(300)]
    await put(store, tenant, ids)
    for other in (f"{tenant}x", f"x{tenant}", tenant[:-1]):
        await put(store, other, ["session 0", "mine"])
    found, places = await listed(store, tenant)
    assert set(found) == set(ids)
    assert len(found) < 310, "SCAN may give a key twice, and hardly ever does"
    assert len(places) > 20, "a few at a time"
    nodes = [place.node for place in places]
    assert nodes == sorted(nodes)
    assert set(nodes) == set(range(3 if deployment.topology == "cluster" else 1))


async def test_a_prefix_means_itself(store, tenant):
    ids = [f"{first}{second}" for first in NASTY for second in ("", "1", "*")]
    await put(store, tenant, set(ids))
    for prefix in ("", *NASTY):
        found, _ = await listed(store, tenant, prefix)
        assert set(found) == {session_id for session_id in ids if session_id.startswith(prefix)}, prefix


async def test_what_lies_beside_a_record_is_not_listed(store, tenant, deployment):
    key = session_key(tenant, "a")
    await put(store, tenant, ["a", "b"])
    assert await store.set_aside(key, encode(record(0)), 60)
    primary = deployment.primary_of(key)
    primary.call("HSET", key + b":beside", "cursor", "x")
    other = session_key(tenant, "c")
    deployment.primary_of(other).call("HSET", other, "not", "a string")
    assert (await listed(store, tenant))[0] == ["b"]


async def test_a_key_space_lists_its_own(store, opened, deployment, tenant):
    for process in deployment.primaries:
        if process.login:
            process.call("ACL", "SETUSER", "holdfast", "~team.l:v1:*")
    other = await opened(deployment.url, key_prefix="team.l")
    await put(store, tenant, ["ours"])
    await put(other, tenant, ["theirs"])
    assert (await listed(store, tenant))[0] == ["ours"]
    assert (await listed(other, tenant))[0] == ["theirs"]
    [head] = await other.heads([session_key(tenant, "theirs")], with_idle=False)
    assert head.key == session_key(tenant, "theirs")


async def test_heads_tell_of_live_sessions(store, tenant, deployment):
    await put(store, tenant, ["live"], ttl_s=60)
    await put(store, tenant, ["for ever"], ttl_s=0)
    await put(store, tenant, ["deleted"], deleted=True)
    await put(store, tenant, ["held"], quarantine_reason="it fails: ü")
    names = ["live", "for ever", "deleted", "held", "nothing", "list", "text"]
    keys = [session_key(tenant, name) for name in names]
    deployment.primary_of(keys[5]).call("RPUSH", keys[5], "no record")
    deployment.primary_of(keys[6]).call("SET", keys[6], "no record " * 20)
    heads = {session_id_of(one.key): one for one in await store.heads(keys, with_idle=True)}
    assert heads.keys() == {"live", "for ever", "held"}
    for one in heads.values():
        assert (one.head.incarnation, one.head.position, one.head.digest) == (7, 0, 1)
        assert one.head.fingerprint == bytes(32)
        assert one.idle_s in (0, 1)
    assert 50 < heads["live"].expires_in_s <= 60
    assert heads["for ever"].expires_in_s == 0
    assert heads["live"].head.reason_start == 0
    held = heads["held"]
    assert await store.quarantine_reason(held.key, held.head.reason_start) == "it fails: ü"
    assert [one.idle_s for one in await store.heads(keys[:1], with_idle=False)] == [None]


async def test_reading_a_head_is_no_use_of_the_session(store, tenant, deployment):
    """Where the server can leave it out; an older one counts it, and the page on stores says so."""
    key = session_key(tenant, "a")
    await put(store, tenant, ["a"])
    primary = deployment.primary_of(key)
    wait_for(lambda: primary.call("OBJECT", "IDLETIME", key) >= 1)
    [head] = await store.heads([key], with_idle=True)
    assert head.idle_s >= 1
    is_counted = deployment.kind == "redis" or deployment.topology in ("acl", "sentinel", "cluster")
    if not is_counted:  # Redis here is 7.0, and the rule without `fsynced` does not allow it
        assert (await store.heads([key], with_idle=True))[0].idle_s >= 1


async def test_a_server_that_was_started_anew_has_another_layout(tmp_path, opened):
    """SCAN goes through a table by places that mean something to one process only."""
    with StoreProcess("valkey", tmp_path / "store") as process:
        store = await opened(process.url)
        first = store.first_place()
        assert first == store.first_place()
        process.kill()
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            store.first_place()
        process.start()
        await eventually(store.ping)
        assert store.first_place().layout != first.layout
