"""Whether a store keeps what it acknowledges, and what it promises. Pure: from what INFO and CONFIG say.

A store that may drop sessions without a word must not be served on; what this file finds is a *danger*.
Some can be allowed by a flag, which the text names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CONFIG_NAMES = ("appendfsync", "save", "stop-writes-on-bgsave-error")
"""Settings that are read where they may be; INFO does not have them."""

FLOORS = {
    "redis": ((6, 2, 24), (7, 2, 16), (7, 4, 11), (8, 2, 9), (8, 4, 6), (8, 6, 6), (8, 8, 2), (8, 10, 1)),
    "valkey": ((8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1)),
}
"""The first release of each line without a known hole through which its clients can run code. What set them
last: Redis CVE-2026-81934 (before it CVE-2026-23479 and CVE-2025-49844), Valkey CVE-2026-63639 and
CVE-2026-56684. A line that is not listed has no such release, unless it is newer than all."""

KEPT_LINES = {
    "redis": ((6, 0), (6, 2), (7, 0), (7, 2), (8, 0)),
    "valkey": ((7, 2), (8, 0), (8, 1)),
}
"""Lines of which distributions mend a release without changing its version: Redis 6.0.16 of Debian 11 and
Ubuntu 22.04, 6.2 and 7.2 of RHEL, 7.0.15 of Debian 12 and Ubuntu 24.04, 8.0.2 of Debian 13; Valkey 7.2 of
Ubuntu 24.04, 8.0 of RHEL 10, 8.1.1 of Debian 13. Nothing that such a server says tells it from one with
holes."""

_MENDED_LAST = {"redis": "CVE-2026-81934", "valkey": "CVE-2026-63639"}
"""What to look for in the changelog of a distribution's package."""


@dataclass(frozen=True)
class Allowances:
    """Dangers that the operator has allowed.

    Attributes:
        volatile: Sessions may be lost: eviction, no append-only file, failing persistence.
        old: A version with known holes, or one that may have them.
    """

    volatile: bool = False
    old: bool = False


class StoreUsage(NamedTuple):
    """What INFO says of a store, or of the primaries of a cluster together.

    Attributes:
        keys: Of all its primaries.
        memory_bytes: In use, in the fullest primary.
        memory_limit_bytes: Of that primary; 0 where there is none.
        replicas: Connected, to the primary that has fewest.
        persists: Whether the last writes of its files succeeded everywhere.
        suspicion: Why a version may have known holes; "" if none may.
    """

    keys: int
    memory_bytes: int
    memory_limit_bytes: int
    replicas: int
    persists: bool
    suspicion: str = ""


def usage_of(info: Mapping[str, str]) -> StoreUsage:
    """Returns what one server uses, from the fields of INFO; what it does not say is 0."""
    keys = sum(
        int(part.removeprefix("keys="))
        for name, value in info.items()
        if name.startswith("db") and name[2:].isdecimal()
        for part in value.split(",")
        if part.startswith("keys=")
    )
    written = (info.get("aof_last_write_status", "ok"), info.get("rdb_last_bgsave_status", "ok"))
    return StoreUsage(
        keys,
        int(info.get("used_memory", "0")),
        int(info.get("maxmemory", "0")),
        int(info.get("connected_slaves", "0")),
        persists=written == ("ok", "ok"),
    )


def usage_together(usages: Sequence[StoreUsage]) -> StoreUsage:
    """Returns the usage of the primaries of a cluster, one at least, as that of one store."""

    def fullness(usage: StoreUsage) -> tuple[float, int]:
        limit_bytes = usage.memory_limit_bytes
        return (usage.memory_bytes / limit_bytes if limit_bytes else 0.0, usage.memory_bytes)

    fullest = max(usages, key=fullness)
    return StoreUsage(
        sum(usage.keys for usage in usages),
        fullest.memory_bytes,
        fullest.memory_limit_bytes,
        min(usage.replicas for usage in usages),
        all(usage.persists for usage in usages),
        next((usage.suspicion for usage in usages if usage.suspicion), ""),
    )


def dangers(
    info: Mapping[str, str], config: Mapping[str, str], *, in_cluster: bool, allowances: Allowances
) -> list[str]:
    """Returns why sessions are not safe on a server; what is allowed is left out.

    Args:
        info: Fields of INFO.
        config: Those of CONFIG_NAMES that could be read.
        in_cluster: It was named as a node of a cluster.
        allowances: What is left out.
    """
    found = _wrong_server(info, in_cluster)
    if not found and not allowances.volatile:
        found += [f"{text}, or allow it by --allow-volatile-store" for text in _volatile(info, config)]
    if not found and not allowances.old:
        found += _old(info)
    return found


def describe(info: Mapping[str, str], config: Mapping[str, str]) -> str:
    """Returns what a server is, how it keeps its data, and where it is said what that can lose."""
    kind, version = _version(info)
    if info.get("aof_enabled") != "1":
        kept = "no append-only file"
    else:
        kept = (
            f"append-only file, appendfsync {config.get('appendfsync', 'unknown (no right to CONFIG GET)')}"
        )
    replicas = int(info.get("connected_slaves", "0"))
    return (
        f"{kind} {'.'.join(map(str, version))}; {kept}; {replicas} connected replicas; "
        "what it can lose: docs/operate/durability.md"
    )


def _wrong_server(info: Mapping[str, str], in_cluster: bool) -> list[str]:
    if info.get("redis_mode", info.get("server_mode")) == "sentinel":
        return ["it is a sentinel: use redis+sentinel://HOST:PORT/NAME"]
    if (info.get("cluster_enabled") == "1") != in_cluster:
        right = (
            "it is not a cluster node: use redis://"
            if in_cluster
            else ("it is a cluster node: use redis+cluster://")
        )
        return [right]
    if info.get("role") == "slave":
        return ["it is a replica and takes no writes: use the primary or the sentinels"]
    return []


def _volatile(info: Mapping[str, str], config: Mapping[str, str]) -> list[str]:
    found = []
    policy = info.get("maxmemory_policy", "")
    if policy != "noeviction":
        found.append(
            f"eviction policy is {policy!r}, so sessions can vanish when memory is short; "
            "set maxmemory-policy noeviction"
        )
    if info.get("aof_enabled") != "1":
        found.append(
            "the append-only file is off, so a restart of the store loses sessions; set appendonly yes"
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        found.append("writing the append-only file fails; make room on its disk, or see its log")
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and _stops_for_snapshots(config):
        found.append(
            "its last snapshot failed, so it refuses writes; make room on its disk, or see its log"
        )
    return found


def _stops_for_snapshots(config: Mapping[str, str]) -> bool:
    """Whether a snapshot that failed stops writes; if that may not be read, it is taken to."""
    if not config.keys() >= {"save", "stop-writes-on-bgsave-error"}:
        return True
    return config["save"] != "" and config["stop-writes-on-bgsave-error"] == "yes"


def _old(info: Mapping[str, str]) -> list[str]:
    holes = _holes(info)
    if not holes or _is_kept(info):
        return []
    return [f"{holes}; if it was mended without a change of the version, say so by --allow-old-store"]


def suspicion(info: Mapping[str, str], allowances: Allowances) -> str:
    """Returns why a version that is served on may have known holes, and where to look; "" if it may not."""
    holes = _holes(info)
    if not holes or not _is_kept(info) or allowances.old:
        return ""
    kind, _ = _version(info)
    return (
        f"{holes}, unless a distribution has mended it, which leaves the version as it is: look for "
        f"{_MENDED_LAST[kind]} in the changelog of its package (apt changelog {kind}-server, "
        f"rpm -q --changelog {kind}), then say so by --allow-old-store"
    )


def _holes(info: Mapping[str, str]) -> str:
    """Returns what is wrong with a version as its makers released it; "" if nothing known is."""
    kind, version = _version(info)
    floors = FLOORS[kind]
    line = next((floor for floor in floors if floor[:2] == version[:2]), None)
    if version >= line if line is not None else version > floors[-1]:
        return ""
    mended = ", ".join(".".join(map(str, floor)) for floor in (floors if line is None else (line,)))
    return (
        f"{kind} {'.'.join(map(str, version))} has holes through which its clients can run code, mended in "
        f"{mended}"
    )


def _is_kept(info: Mapping[str, str]) -> bool:
    kind, version = _version(info)
    return version[:2] in KEPT_LINES[kind]


def _version(info: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    kind = "valkey" if "valkey_version" in info else "redis"
    text = info.get(f"{kind}_version", "0")
    return kind, tuple(int(part) for part in text.split(".") if part.isdecimal())
