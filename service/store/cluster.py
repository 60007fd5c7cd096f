"""Which primary of a cluster has a key: each slot has one, and slots and primaries move.

Every record is committed by a script call of its own, since the keys of a call must share a slot and
sessions hardly ever do; the calls for a primary go out in one write, those for several at the same time.

What may be sent again: a call that a node refused because the slot is elsewhere (MOVED, ASK) or on its way
(TRYAGAIN) was not executed. A call whose reply did not come is never sent again; its record may or may not
have been written.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

import hiredis
import numpy as np

from holdfast.errors import ServiceError, StoreUnavailable
from service.common.background import Trouble
from service.store.address import Address
from service.store.confirmation import AckSettings
from service.store.connection import RECONNECT_DELAYS_S, fixed
from service.store.error_table import RETRY_AFTER_S, error_of, means_demoted
from service.store.node import Node
from service.store.protocol import Writes
from service.store.record import NO_STAMP
from service.store.replies import is_unknown_script
from service.store.slots import SLOT_COUNT, slot_of
from service.store.topology import Answer, Call, cursors_of, pack_cursors

REDIRECT_PAUSES_S = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Before a call is sent to where it was redirected, by how often it was before; the last one repeats."""

_STAMP_BYTES = len(NO_STAMP)
_ASKING = hiredis.pack_command(("ASKING",))

Place = tuple[str, int]
"""Host and port of a node."""


class _Route(NamedTuple):
    """Where a call goes; `asking`: the node has the slot only in part, and must be told that we know."""

    node: Node | None
    asking: bool = False


def pack_each(command: bytes, script: bytes, writes: Sequence[Writes], ttl_ms: int) -> list[Call]:
    """Returns a call `command script 1 key ttl stamp record [cursor]` each; see `Topology.pack`."""
    has_cursors = any(map(cursors_of, writes))
    head = b"*%d\r\n$%d\r\n%s\r\n" % (7 + has_cursors, len(command), command)
    head += b"$%d\r\n%s\r\n$1\r\n1\r\n" % (len(script), script)
    ttl = b"$%d\r\n%d\r\n$%d\r\n" % (len(b"%d" % ttl_ms), ttl_ms, _STAMP_BYTES)
    calls = []
    for part in writes:
        records = part.records
        if isinstance(records, np.ndarray):
            records = [row.tobytes() for row in records]
        stamps, starts = part.expected, range(0, len(part.expected), _STAMP_BYTES)
        cursors = pack_cursors(part) if has_cursors else repeat(b"", len(part.keys))
        for key, start, record, cursor in zip(part.keys, starts, records, cursors, strict=True):
            sizes = (len(key), key, ttl, stamps[start : start + _STAMP_BYTES], len(record), record, cursor)
            calls.append(Call(key, (head + b"$%d\r\n%s\r\n%s%s\r\n$%d\r\n%s\r\n%s" % sizes,)))
    return calls


class Cluster:
    """Implements `Topology` on a cluster.

    Args:
        seeds: Some nodes of it.
        timeout_s: Longest wait for any reply.
        acks: What is asked of each primary beyond its memory.
        marker_of: Gives keys of ours to write before a wait, by number; their slots differ.
        on_change: Called with whether every slot has a primary that answers, when that changes.
    """

    is_cluster = True
    why_moved = "the cluster has changed since"
    pack = staticmethod(pack_each)

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        timeout_s: float,
        acks: AckSettings,
        marker_of: Callable[[int], bytes],
        on_change: Callable[[bool], None],
    ) -> None:
        self._seeds = seeds
        self._timeout_s = timeout_s
        self._acks = acks
        self._marker_of = marker_of
        self._on_change = on_change
        self._on_moved: Callable[[], None] = lambda: None
        self._told = False
        self._nodes: dict[Place, Node] = {}
        self._owners: list[Node | None] = [None] * SLOT_COUNT
        self._is_covered = False
        self._map_is_old = False
        self.layout = b""
        self._turn = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False
        self.nodes: list[Node] = []

    @property
    def is_available(self) -> bool:
        """Whether every slot has a primary that answered when last asked."""
        return self._is_covered and all(node.is_connected for node in self.nodes)

    async def open(self, on_moved: Callable[[], None]) -> None:
        """Reads the map and connects to every primary; see `Topology.open`."""
        self._on_moved = on_moved
        refusals = []
        for seed in self._seeds:
            try:
                self._apply(await self._map_of_seed(seed))
                break
            except ServiceError as error:
                refusals.append(error.message)
        else:
            raise _unavailable("; ".join(refusals))
        await asyncio.gather(*(node.wait_connected() for node in self.nodes))
        if not self._is_covered:
            raise _unavailable("not every slot of the cluster has a primary; see CLUSTER SLOTS")

    async def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        tasks = [*self._retiring, *([self._refreshing] if self._refreshing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    def node_of(self, key: bytes) -> Node | None:
        """Returns the primary of a key's slot."""
        return self._owners[slot_of(key)]

    def together(self, keys: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
        """Returns each key by itself."""
        return [(key,) for key in keys]

    # -- calls --------------------------------------------------------------------------------

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends each call to the primary of its slot, and to where it is redirected; never raises."""
        answers: list[Answer] = [None] * len(calls)
        owners = self._owners
        routes = {number: _Route(owners[slot_of(call.key)]) for number, call in enumerate(calls)}
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        attempt = 0
        while routes:
            redirected: dict[int, _Route] = {}
            for number, answer in (await self._send_once(calls, routes)).items():
                if not isinstance(answer, hiredis.ReplyError) or is_unknown_script(answer):
                    answers[number] = answer
                    continue
                route = self._redirect(str(answer), routes[number], calls[number].key)
                if route is None or asyncio.get_running_loop().time() > deadline_s:
                    answers[number] = self.refusal(str(answer))
                else:
                    redirected[number] = route
            routes = redirected
            if routes:
                await self._before_redirected(routes, attempt)
            attempt += 1
        return answers

    async def send_each(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends each call to the primary of its slot; see `Topology.send_each`."""
        return await self.send(calls)

    async def _send_once(self, calls: Sequence[Call], routes: dict[int, _Route]) -> dict[int, Answer]:
        by_node: dict[Node | None, list[int]] = {}
        for number, route in routes.items():
            by_node.setdefault(route.node, []).append(number)
        answers: dict[int, Answer] = {}
        under_way = []
        for node, numbers in by_node.items():
            requests: list[bytes | memoryview] = []
            for number in numbers:
                requests += [_ASKING] * routes[number].asking
                requests += calls[number].request  # in one piece
            try:
                if node is None:
                    raise _unavailable("the cluster has no primary for this session's slot")
                under_way.append((numbers, node.send_many(requests)))
            except StoreUnavailable as error:
                self._refresh_soon()
                answers.update(dict.fromkeys(numbers, error))
        for numbers, future in under_way:
            replies = iter(await future)
            for number in numbers:
                if routes[number].asking:
                    next(replies)
                answers[number] = next(replies)
        return answers

    def _redirect(self, message: str, route: _Route, key: bytes) -> _Route | None:
        """Returns where to send a call that was not executed; None if that would be of no use."""
        kind, *rest = message.split()
        if kind == "TRYAGAIN":
            return route
        if kind not in ("MOVED", "ASK"):
            if kind == "CLUSTERDOWN":
                self._refresh_soon()
            return None
        assert route.node is not None, "bug: nobody answered"
        node = self._node(_place(rest[1], route.node))
        if kind == "ASK":
            return _Route(node, asking=True)
        self._owners[slot_of(key)] = node
        self._on_moved()
        self._refresh_soon()
        return _Route(node)

    async def _before_redirected(self, routes: dict[int, _Route], attempt: int) -> None:
        await asyncio.sleep(REDIRECT_PAUSES_S[min(attempt, len(REDIRECT_PAUSES_S) - 1)])
        nodes = {route.node for route in routes.values() if route.node is not None}
        waits = (node.wait_connected() for node in nodes)
        await asyncio.gather(*waits, return_exceptions=True)  # sending tells who is not

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; see `Topology.refusal`."""
        if means_demoted(message):
            self._refresh_soon()
        return error_of(message)

    # -- the map ------------------------------------------------------------------------------

    def _refresh_soon(self) -> None:
        self._map_is_old = True
        if not self._closed and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh(), name="cluster map")

    async def _refresh(self) -> None:
        """Reads the map until every slot has a primary that is connected."""
        attempt = 0
        trouble = Trouble("store_cluster_map")
        while self._map_is_old or not self.is_available:
            self._map_is_old = False
            with trouble, contextlib.suppress(ServiceError, TimeoutError):
                self._apply(await self._read_map())
            await asyncio.sleep(RECONNECT_DELAYS_S[min(attempt, len(RECONNECT_DELAYS_S) - 1)])
            attempt += 1

    async def _read_map(self) -> dict[Place, list[range]]:
        """Asks another node each time, since one that is cut off does not know better.

        Raises:
            ServiceError, TimeoutError: It gave no answer.
        """
        choices: list[Node | Address] = [node for node in self._nodes.values() if node.is_connected]
        choices += self._seeds
        choice = choices[self._turn % len(choices)]
        self._turn += 1
        async with asyncio.timeout(self._timeout_s / 4):
            return await (_map_of(choice) if isinstance(choice, Node) else self._map_of_seed(choice))

    async def _map_of_seed(self, seed: Address) -> dict[Place, list[range]]:
        node = Node(
            fixed(seed), timeout_s=self._timeout_s, acks=self._acks, marker=lambda: self._marker_of(0)
        )
        try:
            await node.open()
            return await _map_of(node)
        finally:
            await node.close()

    def _apply(self, places: dict[Place, list[range]]) -> None:
        owners: list[Node | None] = [None] * SLOT_COUNT
        for place, parts in places.items():
            node = self._node(place)
            for part in parts:
                owners[part.start : part.stop] = [node] * len(part)
        if owners != self._owners:
            self._on_moved()
        self._owners = owners
        self._is_covered = None not in owners
        parts_of = {place: [(part.start, part.stop) for part in parts] for place, parts in places.items()}
        self.layout = repr(sorted(parts_of.items())).encode()
        self.nodes = [self._nodes[place] for place in places]
        for place in self._nodes.keys() - places.keys():
            self._retire(self._nodes.pop(place))
        self._tell()

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            address = self._seeds[0].at(*place)
            node = Node(
                fixed(address),
                timeout_s=self._timeout_s,
                on_change=self._node_changed,
                acks=self._acks,
                marker=lambda: self._marker(place),
            )
            self._nodes[place] = node
            node.begin()
        return node

    def _marker(self, place: Place) -> bytes:
        """Returns a key of ours that a node owns.

        Raises:
            StoreUnavailable: It owns no slot.
        """
        node = self._nodes.get(place)
        for number in range(SLOT_COUNT):
            if self._owners[slot_of(marker := self._marker_of(number))] is node:
                return marker
        raise _unavailable(f"the cluster has no slot at {place[0]}:{place[1]} any more")

    def _retire(self, node: Node) -> None:
        """Closes a node that has no slot any more, once what was sent to it is answered or late."""

        async def close() -> None:
            try:
                if node.is_connected:
                    await asyncio.sleep(self._timeout_s)
            finally:
                await node.close()

        task = asyncio.create_task(close(), name="cluster node leaves")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _node_changed(self, is_up: bool) -> None:
        if self._closed:
            return
        if not is_up:
            self._on_moved()
            self._refresh_soon()
        self._tell()

    def _tell(self) -> None:
        if self.is_available != self._told:
            self._told = self.is_available
            self._on_change(self._told)


async def _map_of(node: Node) -> dict[Place, list[range]]:
    """Returns the slots of each primary, as a node knows them."""
    places: dict[Place, list[range]] = {}
    for first, last, primary, *_ in await node.ask("CLUSTER", "SLOTS"):
        host = (primary[0] or b"").decode()
        place = _place(f"{host}:{primary[1]}", node)
        places.setdefault(place, []).append(range(first, last + 1))
    return places


def _place(text: str, said_by: Node) -> Place:
    """Reads HOST:PORT; without a host it is that of the node that said it."""
    host, _, port = text.rpartition(":")
    if not host:
        assert said_by.address is not None, "bug: a node that was never connected has spoken"
        host = said_by.address.host
    return host, int(port)


def _unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable(f"store: {why}", retry_after_s=RETRY_AFTER_S)
