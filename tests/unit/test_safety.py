"""Which stores are refused, and why; and what the log says of the others."""

import re

import pytest

from service.config import Settings
from service.store.safety import FLOORS, Allowances, dangers, describe

SAFE = {
    "redis_version": "7.2.4",
    "valkey_version": "9.1.2",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "role": "master",
    "cluster_enabled": "0",
}


def found(changes, config=None, *, in_cluster=False, volatile=False, old=False):
    info = {name: value for name, value in {**SAFE, **changes}.items() if value is not None}
    return dangers(info, config or {}, in_cluster=in_cluster, allowances=Allowances(volatile, old))


def test_a_safe_store():
    assert found({}) == []
    assert found({"cluster_enabled": "1"}, in_cluster=True) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy noeviction"),
        ({"maxmemory_policy": "volatile-ttl"}, "maxmemory-policy noeviction"),
        ({"aof_enabled": "0"}, "appendonly yes"),
        ({"aof_last_write_status": "err"}, "append-only file fails"),
        ({"rdb_last_bgsave_status": "err"}, "snapshot failed"),
    ],
)
def test_a_store_that_may_lose_sessions(changes, words):
    [text] = found(changes)
    assert words in text
    assert "--allow-volatile-store" in text
    assert found(changes, volatile=True) == []


def test_a_snapshot_that_failed_matters_only_where_it_stops_writes():
    failed = {"rdb_last_bgsave_status": "err"}
    assert found(failed, {"save": "3600 1", "stop-writes-on-bgsave-error": "yes"})
    assert found(failed, {"save": "", "stop-writes-on-bgsave-error": "yes"}) == []
    assert found(failed, {"save": "3600 1", "stop-writes-on-bgsave-error": "no"}) == []


def test_all_dangers_are_said():
    assert len(found({"maxmemory_policy": "allkeys-lru", "aof_enabled": "0"})) == 2


@pytest.mark.parametrize(
    ("changes", "in_cluster", "words"),
    [
        ({"cluster_enabled": "1"}, False, r"redis\+cluster://"),
        ({}, True, "redis://"),
        ({"role": "slave"}, False, "name the primary"),
        ({"redis_mode": "sentinel"}, False, r"redis\+sentinel://"),
    ],
)
def test_the_wrong_server_cannot_be_allowed(changes, in_cluster, words):
    [text] = found(changes, in_cluster=in_cluster, volatile=True, old=True)
    assert re.search(words, text)


@pytest.mark.parametrize(
    ("kind", "version", "is_old"),
    [
        ("redis", "7.0.15", True),  # no release of this line is mended
        ("redis", "6.2.23", True),
        ("redis", "6.2.24", False),
        ("redis", "7.2.15", True),
        ("redis", "7.4.11", False),
        ("redis", "8.0.99", True),
        ("redis", "8.6.5", True),
        ("redis", "8.6.6", False),
        ("redis", "8.10.1", False),
        ("redis", "8.12.0", False),
        ("redis", "9.0.0", False),
        ("valkey", "7.2.13", True),
        ("valkey", "8.1.8", True),
        ("valkey", "8.1.10", False),
        ("valkey", "9.0.4", True),
        ("valkey", "9.1.0", True),
        ("valkey", "9.1.1", False),
        ("valkey", "9.2.0", False),
    ],
)
def test_versions_with_known_holes(kind, version, is_old):
    changes = {"valkey_version": None, "redis_version": version}
    if kind == "valkey":
        changes = {"valkey_version": version}
    texts = found(changes)
    assert bool(texts) == is_old
    assert all("--allow-old-store" in text and version in text for text in texts)
    assert found(changes, old=True) == []


def test_floors_are_in_order():
    for floors in FLOORS.values():
        assert list(floors) == sorted(floors)


@pytest.mark.parametrize(
    ("changes", "config", "words"),
    [
        ({}, {"appendfsync": "everysec"}, "up to 2 s"),
        ({}, {"appendfsync": "always"}, "loss of power loses no reply"),
        ({}, {"appendfsync": "no"}, "30 s"),
        ({}, {}, "may not be read"),
        ({"aof_enabled": "0"}, {}, "loses everything since its last snapshot"),
        ({"connected_slaves": "2"}, {}, "2 replicas, asynchronous"),
        ({}, {}, "no replica"),
        ({}, {}, "valkey 9.1.2"),
    ],
)
def test_what_it_promises_is_said(changes, config, words):
    assert words in describe({**SAFE, **changes}, config)


def test_the_embedded_store_is_not_asked_for_its_version():
    assert Settings().trusts_store_version
    assert not Settings(store="redis://db").trusts_store_version
    assert Settings(store="redis://db", allow_old_store=True).trusts_store_version
