"""What a store needs to know of its nodes: which one has a key, and so what may go in one call.

Implementations: `one_node.OneNode` and `cluster.Cluster`; `opening.create_store` chooses by URL.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from holdfast.errors import ServiceError
from service.store.node import Node
from service.store.protocol import Writes

Answer = Any
"""What became of a call: a reply, or a ServiceError."""


class Call(NamedTuple):
    """A packed command about keys of one node.

    Attributes:
        key: The first of them.
        request: In pieces.
    """

    key: bytes
    request: Sequence[bytes | memoryview]


cursors_of = attrgetter("cursors")
"""Of `Writes`. Where any of a commit has some, the script takes one more argument for each record."""


def pack_arguments(values: Sequence[bytes]) -> bytes:
    """Returns arguments, at least one, as RESP frames them; few lengths occur among many keys."""
    sizes = list(map(len, values))
    heads = {size: b"$%d\r\n" % size for size in set(sizes)}
    if len(heads) == 1:
        [head] = heads.values()
        return b"%s%s\r\n" % (head, (b"\r\n" + head).join(values))
    text = [b"\r\n"] * (3 * len(values))
    text[::3], text[1::3] = map(heads.__getitem__, sizes), values
    return b"".join(text)


def pack_cursors(part: Writes) -> list[bytes]:
    """Returns the cursor of each record as an argument of the script, framed; see `commit.lua`."""
    return [
        b"$0\r\n\r\n" if cursor is None else b"$%d\r\n=%s\r\n" % (len(cursor) + 1, cursor)
        for cursor in part.cursors or [None] * len(part.keys)
    ]


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
        """Packs calls of a script as RESP requests, with the records that may go together.

        Args:
            command: EVAL or EVALSHA.
            script: The script, or its hash.
            writes: Records of distinct keys.
            ttl_ms: Their time to live.
        """
        ...

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends each call to the primary that has its keys.

        Returns:
            Replies, NOSCRIPT being one; or what became of some calls where others have a reply.

        Raises:
            ServiceError: What the error means, or StoreUnavailable: no answer in time.
        """
        ...

    async def send_each(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends calls that have no more to do with each other; never raises.

        Returns:
            What became of each.
        """
        ...

    @property
    def layout(self) -> bytes:
        """Says which node has which slots; b"" where one has all."""
        ...

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; after one of a demoted server the primary is looked for."""
        ...
