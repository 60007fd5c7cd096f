"""Which node has a key: the only one, as here, or, in `cluster`, the primary of the key's slot."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis

from holdfast.errors import ServiceError
from service.store.address import Address
from service.store.confirmation import AckSettings
from service.store.connection import fixed
from service.store.node import Node
from service.store.packing import Call, pack_together
from service.store.protocol import Writes
from service.store.replies import is_unknown_script
from service.store.sentinel import Sentinels

Answer = Any
"""What became of a call: a reply, or a ServiceError."""


class Topology(Protocol):
    """Knows the primaries of a store, and holds the connections to them.

    Attributes:
        is_cluster: Whether each slot has a primary of its own.
        why_moved: Why what was read or committed before a node was lost cannot be confirmed.
    """

    is_cluster: bool
    why_moved: str

    @property
    def nodes(self) -> Sequence[Node]:
        """The primaries, as far as known."""
        ...

    @property
    def is_available(self) -> bool:
        """Whether every key has a primary that answered when last asked."""
        ...

    async def open(self, on_moved: Callable[[], None]) -> None:
        """Connects.

        Args:
            on_moved: Called whenever another server may have taken the place of one that has keys.

        Raises:
            StoreUnavailable: No server answers there, or it refuses the greeting.
        """
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...

    def node_of(self, key: bytes) -> Node | None:
        """Returns the primary that has a key; None if nobody knows it."""
        ...

    def together(self, keys: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
        """Returns keys in parts, each of which one call may be about."""
        ...

    def pack(self, command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Call]:
        """Returns calls of the commit script, with the records that may go together; see `packing`."""
        ...

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends each call to the primary that has its keys.

        Returns:
            Replies, NOSCRIPT being one; or what became of some calls where others have a reply.

        Raises:
            ServiceError: What the error means, or StoreUnavailable: no answer in time.
        """
        ...

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; after one of a demoted server the primary is looked for."""
        ...


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

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; see `Node.refusal`."""
        return self._node.refusal(message)

    def _node_changed(self, is_up: bool) -> None:
        if not is_up:
            self._on_moved()
        self._on_change(is_up)
