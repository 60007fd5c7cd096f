"""Lists the keys of a store, and reads no more of their records than their heads.

A list goes from server to server, by SCAN: it holds none of them up, and what is there from its first step
to its last is in it. Its place means something to the very processes that it was begun with, and as long as
each of them has the keys that it had, so a place names both.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import hiredis
import xxhash

from holdfast.errors import ServiceError, StoreUnavailable
from service.store.error_table import RETRY_AFTER_S
from service.store.head import HEAD_BYTES, REASON_BYTES, decode_head, decode_reason
from service.store.keys import KeySpace
from service.store.node import Node
from service.store.protocol import KeyedHead, ScanPlace
from service.store.replies import scanned_of, seconds_of
from service.store.topology import Answer, Call, Topology

Value = TypeVar("Value")


class Listing:
    """Lists what a topology holds; see `StateStore` for the methods.

    Args:
        topology: Of the store.
        key_space: Where the keys lie.
    """

    def __init__(self, topology: Topology, key_space: KeySpace) -> None:
        self._topology = topology
        self._key_space = key_space

    def first_place(self) -> ScanPlace:
        """Returns where a list begins; see `StateStore.first_place`."""
        nodes = self._nodes()
        names = b" ".join(node.process for node in nodes)
        return ScanPlace(xxhash.xxh3_64_digest(names + b" " + self._topology.layout))

    async def scan(
        self, pattern: bytes, place: ScanPlace, count: int
    ) -> tuple[Sequence[bytes], ScanPlace | None]:
        """Looks through some keys; see `StateStore.scan`."""
        nodes = self._nodes()
        node = nodes[place.node]
        [pattern] = self._key_space.placed((pattern,))
        reply = await node.ask("SCAN", place.cursor, "MATCH", pattern, "COUNT", count, "TYPE", "string")
        try:
            cursor, keys = scanned_of(reply)
        except ValueError:
            raise _garbage(node) from None
        following = place._replace(node=place.node + (cursor == 0), cursor=cursor)
        return self._key_space.original(keys), following if following.node < len(nodes) else None

    async def heads(self, keys: Sequence[bytes], *, with_idle: bool) -> list[KeyedHead]:
        """Reads heads; see `StateStore.heads`."""
        if with_idle:
            for node in self._nodes():
                await node.execute(
                    "CLIENT", "NO-TOUCH", "ON"
                )  # an older server refuses, and counts our reading
        calls = []
        for key in self._key_space.placed(keys):
            if with_idle:
                calls.append(_call(key, "OBJECT", "IDLETIME", key))
            calls += [_call(key, "PTTL", key), _call(key, "GETRANGE", key, 0, HEAD_BYTES - 1)]
        answers = iter(await self._topology.send_each(calls))
        found = []
        for key in keys:
            idle_s = self._read(key, next(answers), int) if with_idle else None
            ttl_ms, data = self._read(key, next(answers), int), self._read(key, next(answers), bytes)
            head = decode_head(data or b"")
            if head is not None:
                found.append(KeyedHead(key, head, seconds_of(ttl_ms or 0), idle_s))
        return found

    async def quarantine_reason(self, key: bytes, start: int) -> str:
        """Reads a reason; see `StateStore.quarantine_reason`."""
        [key] = self._key_space.placed((key,))
        [answer] = await self._topology.send_each(
            [_call(key, "GETRANGE", key, start, start + REASON_BYTES)]
        )
        return decode_reason(self._read(key, answer, bytes) or b"")

    def _read(self, key: bytes, answer: Answer, kind: type[Value]) -> Value | None:
        """Returns a reply about a key; None where the key is gone, or has another kind of value.

        Raises:
            StoreUnavailable: It did not come in time, or cannot be one.
        """
        if isinstance(answer, StoreUnavailable):
            raise answer
        if answer is None or isinstance(answer, ServiceError):
            return None
        if not isinstance(answer, kind):
            raise _garbage(self._topology.node_of(key))
        return answer

    def _nodes(self) -> list[Node]:
        """Returns the primaries, in an order that does not depend on who asks.

        Raises:
            StoreUnavailable: One of them is away.
        """
        if not self._topology.is_available:
            raise StoreUnavailable("store: not every server of it answers", retry_after_s=RETRY_AFTER_S)
        return sorted(self._topology.nodes, key=lambda node: node.process)


def _call(key: bytes, *command: Any) -> Call:
    return Call(key, (hiredis.pack_command(command),))


def _garbage(node: Node | None) -> StoreUnavailable:
    """Leaves a server whose reply cannot be one: it may belong to another request, as may the others."""
    why = "its reply to a list of keys cannot be one"
    if node is not None:
        node.leave(why)
    return StoreUnavailable(f"{node or 'store'}: {why}", retry_after_s=RETRY_AFTER_S)
