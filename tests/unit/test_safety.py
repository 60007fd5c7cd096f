"""Which stores are refused, and why; and what the log says of the others."""

import re

import pytest

from service.settings.schema import Settings
from service.store.safety import FLOORS, KEPT_LINES, Allowances, dangers, describe, suspicion

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
        ({"role": "slave"}, False, "use the primary"),
        ({"redis_mode": "sentinel"}, False, r"redis\+sentinel://"),
    ],
)
def test_the_wrong_server_cannot_be_allowed(changes, in_cluster, words):
    [text] = found(changes, in_cluster=in_cluster, volatile=True, old=True)
    assert re.search(words, text)


VERSIONS = {
    "mended": "redis 6.2.24, 7.2.16, 7.4.11, 8.6.6, 8.10.1, 8.12.0, 9.0.0; "
    "valkey 8.0.10, 8.1.10, 9.1.1, 9.2.0",
    "perhaps mended by a distribution": "redis 6.0.16, 6.2.23, 7.0.15, 7.2.15, 8.0.2, 8.0.99; "
    "valkey 7.2.12, 8.0.2, 8.1.1",
    "known to have holes": "redis 2.8.24, 5.0.14, 7.4.10, 8.2.8, 8.5.0, 8.6.5; valkey 9.0.4, 9.1.0",
}


def versions(verdict):
    parts = (part.split(" ", 1) for part in VERSIONS[verdict].split("; "))
    return [(kind, number) for kind, numbers in parts for number in numbers.split(", ")]


def info_of(kind, version):
    return {**SAFE, "valkey_version": None, "redis_version": version} | (
        {"valkey_version": version} if kind == "valkey" else {}
    )


def suspected(kind, version, *, old=False):
    info = {name: value for name, value in info_of(kind, version).items() if value is not None}
    return suspicion(info, Allowances(old=old))


@pytest.mark.parametrize(("kind", "version"), versions("mended"))
def test_a_version_without_known_holes(kind, version):
    assert found(info_of(kind, version)) == []
    assert suspected(kind, version) == ""


@pytest.mark.parametrize(("kind", "version"), versions("perhaps mended by a distribution"))
def test_a_version_that_a_distribution_may_have_mended_is_served_on_and_told(kind, version):
    assert found(info_of(kind, version)) == []
    said = suspected(kind, version)
    assert f"{kind} {version} has holes" in said
    assert re.search(rf"CVE-\d+-\d+ in the changelog .*apt changelog {kind}-server", said)
    assert suspected(kind, version, old=True) == ""


@pytest.mark.parametrize(("kind", "version"), versions("known to have holes"))
def test_a_version_with_known_holes_that_nobody_mends_is_refused(kind, version):
    [text] = found(info_of(kind, version))
    assert "--allow-old-store" in text
    assert f"{kind} {version} has holes" in text
    assert found(info_of(kind, version), old=True) == []
    assert suspected(kind, version) == ""


def test_floors_are_in_order_and_none_is_above_all_lines_that_are_kept():
    for kind, floors in FLOORS.items():
        assert list(floors) == sorted(floors)
        assert max(KEPT_LINES[kind]) <= floors[-1]


@pytest.mark.parametrize(
    ("changes", "config", "words"),
    [
        ({}, {"appendfsync": "everysec"}, "; append-only file, appendfsync everysec; "),
        ({}, {"appendfsync": "always"}, "; append-only file, appendfsync always; "),
        ({}, {"appendfsync": "no"}, "; append-only file, appendfsync no; "),
        ({}, {}, "appendfsync unknown (no right to CONFIG GET)"),
        ({"aof_enabled": "0"}, {}, "; no append-only file; "),
        ({"connected_slaves": "2"}, {}, "; 2 connected replicas; "),
        ({}, {}, "; 0 connected replicas; "),
        ({}, {}, "what it can lose: docs/operate/durability.md"),
        ({}, {}, "valkey 9.1.2"),
    ],
)
def test_what_it_is_is_said_and_where_to_read_what_it_can_lose(changes, config, words):
    assert words in describe({**SAFE, **changes}, config)


def test_the_embedded_store_is_not_asked_for_its_version():
    assert Settings().trusts_store_version
    assert not Settings(store="redis://db").trusts_store_version
    assert Settings(store="redis://db", allow_old_store=True).trusts_store_version
