"""Lists the keys of a store, and reads no more of their records than their heads.

A list goes from server to server, by SCAN: it holds none of them up, and what is there from its first step
to its last is in it. Its place means something to the very processes that it was begun with, and as long as
each of them has the keys that it had, so a place names both.
"""

from collections.abc import Sequence
from typing import Any

import hiredis
import xxhash

from holdfast.errors import ServiceError, StoreUnavailable
from service.store.error_table import RETRY_AFTER_S
from service.store.head import HEAD_BYTES, REASON_BYTES, Head, decode_head, decode_reason
from service.store.keys import KeySpace
from service.store.node import Node
from service.store.protocol import KeyedHead, ScanPlace
from service.store.replies import scanned_of, seconds_of
from service.store.topology import Answer, Call, Topology


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
            node.leave("the reply to SCAN cannot be one")
            raise StoreUnavailable(
                f"{node}: the reply to SCAN cannot be one", retry_after_s=RETRY_AFTER_S
            ) from None
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
            idle_s = _whole(next(answers)) if with_idle else None
            expires_in_s, head = seconds_of(_whole(next(answers)) or 0), _head(next(answers))
            if head is not None:
                found.append(KeyedHead(key, head, expires_in_s, idle_s))
        return found

    async def quarantine_reason(self, key: bytes, start: int) -> str:
        """Reads a reason; see `StateStore.quarantine_reason`."""
        [key] = self._key_space.placed((key,))
        [answer] = await self._topology.send_each(
            [_call(key, "GETRANGE", key, start, start + REASON_BYTES)]
        )
        return decode_reason(_there(answer) or b"")

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


def _there(answer: Answer) -> Any:
    """Returns a reply about a key, None where there is no such value.

    Raises:
        StoreUnavailable: There is none in time.
    """
    if isinstance(answer, StoreUnavailable):
        raise answer
    return None if isinstance(answer, ServiceError) else answer


def _whole(answer: Answer) -> int | None:
    reply = _there(answer)
    return reply if isinstance(reply, int) else None


def _head(answer: Answer) -> Head | None:
    reply = _there(answer)
    return decode_head(reply) if isinstance(reply, bytes) else None
