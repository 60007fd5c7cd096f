"""The state store on one primary: a single Redis or Valkey, or the one that sentinels name."""

import hashlib
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import hiredis

from holdfast.errors import ServiceError
from service.store.confirmation import AckSupport
from service.store.connection import Reply
from service.store.keys import set_aside_key
from service.store.node import Node
from service.store.packing import pack_script
from service.store.protocol import AckLevel, Found, Refusals, UnsafeStore, Writes
from service.store.safety import Allowances, StoreUsage, dangers, describe, suspicion, usage_of
from service.store.sentinel import Sentinels

SCRIPT = files(__package__).joinpath("commit.lua").read_bytes()
SET_ASIDE = files(__package__).joinpath("set_aside.lua").read_bytes()
SCRIPT_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()


class RedisStore:
    """Implements `Store` on a node.

    Args:
        node: The primary.
        allowances: Dangers that `check_safe` does not mind.
        sentinels: Those that say when another server is the primary, if there are any.
    """

    def __init__(self, node: Node, allowances: Allowances, sentinels: Sentinels | None = None) -> None:
        self._node = node
        self._allowances = allowances
        self._sentinels = sentinels
        self._support: AckSupport | None = None

    @property
    def is_available(self) -> bool:
        """Whether the store answered when last asked."""
        return self._node.is_connected

    @property
    def epoch(self) -> int:
        """Changes whenever another server may have taken the primary's place."""
        return self._node.epoch

    async def open(self) -> None:
        """Connects; see `Store.open`."""
        await self._node.open()
        if self._sentinels is not None:
            self._sentinels.watch(self._node)

    async def close(self) -> None:
        """Closes the connection."""
        if self._sentinels is not None:
            await self._sentinels.close()
        await self._node.close()

    async def check_safe(self) -> StoreUsage:
        """Makes sure that the store keeps what it acknowledges; see `Store.check_safe`."""
        return await check_node(self._node, self._allowances, in_cluster=False)

    async def describe(self) -> str:
        """Returns one line about the store; see `Store.describe`."""
        return f"{self._node}: {describe(await self._node.info(), await self._node.config())}"

    async def check_acks(self) -> None:
        """Finds out which acknowledgement levels it can give; see `Store.check_acks`."""
        self._support = await self._node.ack_support()
        self._support.check_default()

    def check_level(self, level: AckLevel) -> None:
        """Refuses what the store is not set up to give; see `StateStore.check_level`."""
        assert self._support is not None, "bug: nobody asked what the store can give"
        self._support.check(level)

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """Waits for replicas and disk; see `StateStore.confirm`."""
        refusal = await self._node.confirm(level, epoch)
        return {} if refusal is None else dict.fromkeys(range(len(keys)), refusal)

    async def load(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Reads records in one round trip; see `StateStore.load`."""
        with self._node.reading("MGET"):
            return records_of(await self._node.ask("MGET", *keys), len(keys))

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """Replaces records in one round trip; see `StateStore.commit`."""
        ttl_ms = math.ceil(ttl_s * 1000)
        reply = await self._node.send(pack_script(b"EVALSHA", SCRIPT_SHA, writes, ttl_ms))
        if is_unknown_script(reply):
            # a server that does not know the script has executed nothing, so asking again is safe
            reply = await self._node.send(pack_script(b"EVAL", SCRIPT, writes, ttl_ms))
        if isinstance(reply, hiredis.ReplyError):
            raise self._node.refusal(str(reply))
        with self._node.reading("the script"):
            return refusals_of(reply, sum(len(part.keys) for part in writes), self._node.refusal)

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """Moves a record to where it is kept for inspection; see `StateStore.set_aside`."""
        return bool(await self._node.ask(*set_aside_command(key, record, ttl_s)))

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; see `StateStore.time_to_live_s`."""
        with self._node.reading("PTTL"):
            return seconds_of(await self._node.ask("PTTL", key))

    async def ping(self) -> None:
        """Asks for a sign of life; see `Store.ping`."""
        await self._node.ask("PING")


async def check_node(node: Node, allowances: Allowances, *, in_cluster: bool) -> StoreUsage:
    """Makes sure that a node keeps what it acknowledges; returns what it uses.

    Raises:
        UnsafeStore: It does not, for all the reasons in its text.
        StoreUnavailable: No answer in time.
    """
    info = await node.info()
    asks_config = info.get("rdb_last_bgsave_status", "ok") != "ok"  # else nothing depends on it
    config = await node.config() if asks_config else {}
    found = dangers(info, config, in_cluster=in_cluster, allowances=allowances)
    if found:
        raise UnsafeStore(f"{node}: {'; '.join(found)}", usage_of(info))
    return usage_of(info)._replace(suspicion=suspicion(info, allowances))


def set_aside_command(key: bytes, record: bytes, ttl_s: float) -> tuple[Any, ...]:
    """Returns the command that moves a record aside, if it is still the given one."""
    return ("EVAL", SET_ASIDE, 2, key, set_aside_key(key), record, math.ceil(ttl_s * 1000))


def is_unknown_script(reply: Any) -> bool:
    """Whether a server that was asked for the script by its hash has lost it, and so executed nothing."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def records_of(reply: Reply, count: int) -> list[bytes | None]:
    """Reads what MGET returns for `count` keys.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list) or len(reply) != count:
        raise ValueError
    if not all(record is None or isinstance(record, bytes) for record in reply):
        raise ValueError
    return reply


def seconds_of(reply: Reply) -> float:
    """Reads what PTTL returns; 0 where nothing expires.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, int):
        raise ValueError
    return max(reply, 0) / 1000


def refusals_of(reply: Reply, count: int, refusal: Callable[[str], ServiceError]) -> Refusals:
    """Reads what the script returns.

    Args:
        reply: To a call for `count` records.
        count: See there.
        refusal: Says what an error text means.

    Returns:
        The records that were not written, by their number from 0.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list):
        raise ValueError
    refusals: Refusals = {}
    for number, kind, detail in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
        if not (isinstance(number, int) and 1 <= number <= count and isinstance(detail, bytes | None)):
            raise ValueError
        if kind == b"error" and detail:
            refusals[number - 1] = refusal(detail.decode(errors="replace"))
        else:
            refusals[number - 1] = Found(detail)
    return refusals
