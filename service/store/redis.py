"""The state store on one Redis or Valkey server."""

import hashlib
import math
import ssl
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hiredis
import redis.connection

from service.errors import RecordCorrupt, ServiceError, StoreFull, StoreUnavailable
from service.store.confirmation import ASK_POLICY, AckSettings, AckSupport, Confirmer
from service.store.connection import RETRY_AFTER_S, Address, StoreConnection
from service.store.keys import ACK_MARKER, set_aside_key
from service.store.packing import pack_script
from service.store.protocol import AckLevel, Found, Refusals, Writes

_SCRIPT = files(__package__).joinpath("commit.lua").read_bytes()
_SET_ASIDE = files(__package__).joinpath("set_aside.lua").read_bytes()
_SCRIPT_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()

SCHEMES = ("redis", "rediss", "unix")


class UnsafeStore(Exception):
    """The store could drop sessions without a word; the message says why and what to set."""


def parse_url(url: str) -> Address:
    """Reads `redis://[user[:password]@]host[:port][/db]`, `rediss://…` or `unix://[…@]path[?db=n]`.

    Raises:
        ValueError: Another scheme, or parts that cannot be read.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        expected = ", ".join(f"{known}://" for known in SCHEMES)
        raise ValueError(f"scheme {scheme!r} is not one of {expected}")
    parts: dict[str, Any] = dict(redis.connection.parse_url(url))  # type: ignore[no-untyped-call]
    socket_path = parts.get("path")
    return Address(
        host=parts.get("host", "127.0.0.1"),
        port=parts.get("port", 6379),
        socket_path=Path(socket_path) if socket_path else None,
        database=parts.get("db", 0),
        username=parts.get("username"),
        password=parts.get("password"),
        tls=ssl.create_default_context() if scheme == "rediss" else None,
    )


class RedisStore:
    """Implements `StateStore`.

    Args:
        url: See `parse_url`.
        timeout_s: Longest wait for any reply.
        on_change: Called with whether the store answers, when that changes.
        acks: What is asked of it beyond its primary's memory.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None] = lambda _: None,
        acks: AckSettings = AckSettings(),  # noqa: B008 -- frozen
    ) -> None:
        self._connection = StoreConnection(parse_url(url), timeout_s=timeout_s, on_change=on_change)
        self._acks = acks
        self._support = AckSupport(b"", None, acks)
        self._confirmer = Confirmer(self._connection, ACK_MARKER, acks)

    @property
    def is_available(self) -> bool:
        """Whether the store answered when last asked."""
        return self._connection.is_connected

    async def open(self) -> None:
        """Connects.

        Raises:
            StoreUnavailable: No server answers there, or it refuses the greeting.
        """
        await self._connection.open()

    async def close(self) -> None:
        """Closes the connections."""
        await self._confirmer.close()
        await self._connection.close()

    async def check_safe(self) -> None:
        """Makes sure that the store keeps what it acknowledges.

        Raises:
            UnsafeStore: It may evict sessions, or does not write them to disk.
            StoreUnavailable: No answer in time.
        """
        info = _parse_info(await self._ask("INFO"))
        policy = info.get("maxmemory_policy", "")
        if policy != "noeviction":
            raise UnsafeStore(
                f"eviction policy is {policy!r}, so sessions can vanish when memory is short; "
                "set maxmemory-policy noeviction"
            )
        if info.get("aof_enabled") != "1":
            raise UnsafeStore(
                "the append-only file is off, so a restart of the store loses sessions; set appendonly yes"
            )
        if info.get("aof_last_write_status", "ok") != "ok":
            raise UnsafeStore("writing the append-only file fails; see the log of the store")

    async def check_acks(self) -> None:
        """Finds out which acknowledgement levels the store can give, and makes sure of the default.

        Raises:
            AckLevelUnsupported: Not the default.
            StoreUnavailable: No answer in time.
        """
        policy = await self._connection.execute(*ASK_POLICY)  # an error is no answer
        self._support = AckSupport(await self._ask("INFO"), policy, self._acks)
        self._support.check_default()

    @property
    def epoch(self) -> int:
        """Counts reconnects; see `StateStore.epoch`."""
        return self._connection.epoch

    def check_level(self, level: AckLevel) -> None:
        """Refuses what the store is not set up to give; see `StateStore.check_level`."""
        self._support.check(level)

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """Waits for replicas and disk; see `StateStore.confirm`."""
        refusal = await self._confirmer.confirm(level, epoch)
        return {} if refusal is None else dict.fromkeys(range(len(keys)), refusal)

    async def load(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Reads records in one round trip; see `StateStore.load`."""
        records: list[bytes | None] = await self._ask("MGET", *keys)
        return records

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """Replaces records in one round trip; see `StateStore.commit`."""
        ttl_ms = math.ceil(ttl_s * 1000)
        reply = await self._connection.send(pack_script(b"EVALSHA", _SCRIPT_SHA, writes, ttl_ms))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            # a server that does not know the script has executed nothing, so asking again is safe
            reply = await self._connection.send(pack_script(b"EVAL", _SCRIPT, writes, ttl_ms))
        if isinstance(reply, hiredis.ReplyError):
            raise _error_of(str(reply))
        return _refusals(reply)

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """Moves a record to where it is kept for inspection; see `StateStore.set_aside`."""
        ttl_ms = math.ceil(ttl_s * 1000)
        moved = await self._ask("EVAL", _SET_ASIDE, 2, key, set_aside_key(key), record, ttl_ms)
        return bool(moved)

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; see `StateStore.time_to_live_s`."""
        left_ms: int = await self._ask("PTTL", key)
        return max(left_ms, 0) / 1000

    async def ping(self) -> None:
        """Asks for a sign of life.

        Raises:
            StoreUnavailable: No answer in time.
        """
        await self._ask("PING")

    async def _ask(self, *command: Any) -> Any:
        reply = await self._connection.execute(*command)
        if isinstance(reply, hiredis.ReplyError):
            raise _error_of(str(reply))
        return reply


def _refusals(entries: list[Any]) -> Refusals:
    refusals: Refusals = {}
    for number, kind, detail in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
        if kind == b"error":
            refusals[number - 1] = _error_of(detail.decode(errors="replace"))
        else:
            refusals[number - 1] = Found(detail or None)
    return refusals


def _error_of(message: str) -> ServiceError:
    """Maps the store's error text, by its first word, to what a caller can act on."""
    if message.startswith("OOM"):
        return StoreFull("the store is out of memory: raise maxmemory or close sessions")
    if message.startswith("WRONGTYPE"):
        return RecordCorrupt("the key of this session holds something that is not a record")
    return StoreUnavailable(f"store: {message}", retry_after_s=RETRY_AFTER_S)


def _parse_info(text: bytes) -> dict[str, str]:
    lines = text.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
