"""One node has every key: a single server, or the primary that sentinels name. A batch goes in one call."""

from collections.abc import Callable, Sequence
from itertools import repeat

import hiredis
import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError
from service.store.address import Address
from service.store.confirmation import AckSettings
from service.store.connection import fixed
from service.store.node import Node
from service.store.protocol import Writes
from service.store.record import NO_STAMP
from service.store.replies import is_unknown_script
from service.store.sentinel import Sentinels
from service.store.topology import Answer, Call, cursors_of, pack_arguments, pack_cursors

_STAMP_BYTES = len(NO_STAMP)
_MATRIX_PAYS = 8
"""Fewer records than this are packed faster one by one."""


def pack_together(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Call]:
    """Returns one call, `command script n key... ttl (stamp record [cursor])...`; see `Topology.pack`.

    The records of a batch mostly have one size. Their arguments then differ in the bytes and never in the
    framing, so they are laid into one matrix instead of being packed one by one, at a third of the time.
    """
    keys: list[bytes] = []
    for part in writes:
        keys += part.keys
    has_cursors = any(map(cursors_of, writes))
    count, ttl = b"%d" % len(keys), b"%d" % ttl_ms
    head = (
        4 + (3 + has_cursors) * len(keys),
        len(command),
        command,
        len(script),
        script,
        len(count),
        count,
    )
    text = [b"*%d\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % head, pack_arguments(keys)]
    text.append(b"$%d\r\n%s\r\n" % (len(ttl), ttl))
    pieces: list[bytes | memoryview] = []
    for part in writes:
        records = part.records
        if isinstance(records, np.ndarray):
            if len(records) >= _MATRIX_PAYS and not has_cursors:
                if text:
                    pieces.append(b"".join(text))
                pieces.append(_frame(part.expected, records))
                text = []
                continue
            records = [row.tobytes() for row in records]
        starts = range(0, len(part.expected), _STAMP_BYTES)
        cursors = pack_cursors(part) if has_cursors else repeat(b"", len(part.keys))
        for start, record, cursor in zip(starts, records, cursors, strict=True):
            stamp = part.expected[start : start + _STAMP_BYTES]
            text += (
                b"$%d\r\n%s\r\n$%d\r\n" % (len(stamp), stamp, len(record)), record, b"\r\n", cursor,
            )  # fmt: skip
    if text:
        pieces.append(b"".join(text))
    return [Call(keys[0], pieces)]


def _frame(expected: bytes, records: NDArray[np.uint8]) -> memoryview:
    """Returns the two arguments of each record, B times the bytes of both."""
    count, size = records.shape
    before, between = b"$%d\r\n" % _STAMP_BYTES, b"\r\n$%d\r\n" % size
    stamp_end = len(before) + _STAMP_BYTES
    record_start = stamp_end + len(between)
    framed = np.empty((count, record_start + size + 2), np.uint8)
    framed[:, :record_start] = np.frombuffer(before + NO_STAMP + between, np.uint8)
    framed[:, len(before) : stamp_end] = np.frombuffer(expected, np.uint8).reshape(count, _STAMP_BYTES)
    framed[:, record_start:-2] = records
    framed[:, -2:] = (13, 10)
    return framed.data.cast("B")


class OneNode:
    """Implements `Topology` on one server, or on the primary that sentinels name.

    Args:
        place: Of the server, or those who know it.
        timeout_s: Longest wait for any reply.
        acks: What is asked of it beyond its memory.
        marker: A key of ours, to write before a wait.
        on_change: Called with whether it answers, when that changes.
    """

    is_cluster = False
    layout = b""
    why_moved = "the connection to the store was made anew since, perhaps to another server"
    pack = staticmethod(pack_together)

    def __init__(
        self,
        place: Address | Sentinels,
        *,
        timeout_s: float,
        acks: AckSettings,
        marker: bytes,
        on_change: Callable[[bool], None],
    ) -> None:
        self._sentinels = place if isinstance(place, Sentinels) else None
        self._on_change = on_change
        self._on_moved: Callable[[], None] = lambda: None
        self._node = Node(
            place.locate if isinstance(place, Sentinels) else fixed(place),
            timeout_s=timeout_s,
            on_change=self._node_changed,
            must_be_primary=isinstance(place, Sentinels),
            acks=acks,
            marker=lambda: marker,
        )
        self.nodes = (self._node,)

    @property
    def is_available(self) -> bool:
        """Whether it answered when last asked."""
        return self._node.is_connected

    async def open(self, on_moved: Callable[[], None]) -> None:
        """Connects; see `Topology.open`."""
        self._on_moved = on_moved
        await self._node.open()
        if self._sentinels is not None:
            self._sentinels.watch(self._node)

    async def close(self) -> None:
        """Closes the connection, and stops listening to the sentinels."""
        if self._sentinels is not None:
            await self._sentinels.close()
        await self._node.close()

    def node_of(self, key: bytes) -> Node:
        """Returns the node."""
        return self._node

    def together(self, keys: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
        """Returns all keys in one part."""
        return (keys,)

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends the only call; see `Topology.send`."""
        [call] = calls
        reply = await self._node.send(call.request)
        if isinstance(reply, hiredis.ReplyError) and not is_unknown_script(reply):
            raise self._node.refusal(str(reply))
        return [reply]

    async def send_each(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends calls in one write; see `Topology.send_each`."""
        try:
            replies = await self._node.send_many([piece for call in calls for piece in call.request])
        except ServiceError as error:
            return [error] * len(calls)
        return [self.refusal(str(one)) if isinstance(one, hiredis.ReplyError) else one for one in replies]

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; see `Node.refusal`."""
        return self._node.refusal(message)

    def _node_changed(self, is_up: bool) -> None:
        if not is_up:
            self._on_moved()
        self._on_change(is_up)
