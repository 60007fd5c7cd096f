"""The state store on a cluster: sessions lie in slots, and each slot on one of several primaries.

Every record is committed by a script call of its own, since the keys of a call must share a slot and
sessions hardly ever do; the calls for a primary go out in one write, those for several at the same time.

What may be sent again: a call that a node refused because the slot is elsewhere (MOVED, ASK) or on its way
(TRYAGAIN), or because it does not know the script, was not executed. A call whose reply did not come is
never sent again; its record may or may not have been written.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import hiredis

from holdfast.errors import AckLevelNotReached, ServiceError, StoreUnavailable
from service.common.background import Trouble
from service.store.address import Address
from service.store.confirmation import AckSettings, AckSupport, not_reached
from service.store.connection import RECONNECT_DELAYS_S, Reply, fixed
from service.store.error_table import RETRY_AFTER_S, error_of, means_demoted
from service.store.keys import KeySpace
from service.store.node import Node
from service.store.packing import pack_scripts
from service.store.protocol import AckLevel, Loaded, Refusals, UnsafeStore, Writes
from service.store.redis import (
    SCRIPT,
    SCRIPT_SHA,
    check_node,
    is_unknown_script,
    records_of,
    refusals_of,
    seconds_of,
    set_aside_command,
)
from service.store.safety import Allowances, StoreUsage, describe, usage_together
from service.store.slots import SLOT_COUNT, slot_of

REDIRECT_PAUSES_S = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Before a call is sent to where it was redirected, by how often it was before; the last one repeats."""

_ASKING = hiredis.pack_command(("ASKING",))

Value = TypeVar("Value")

Place = tuple[str, int]
"""Host and port of a node."""


class _Call(NamedTuple):
    """A packed command about one key, and the key's slot."""

    slot: int
    request: bytes


class _Route(NamedTuple):
    """Where a call goes; `asking`: the node has the slot only in part, and must be told that we know."""

    node: Node | None
    asking: bool = False


class ClusterStore:
    """Implements `Store` on a cluster.

    Args:
        seeds: Some nodes of it.
        timeout_s: Longest wait for any reply.
        allowances: Dangers that `check_safe` does not mind.
        acks: What is asked of each primary beyond its memory.
        marker_of: Gives keys of ours to write before a wait, by number; their slots differ.
        on_change: Called with whether every slot has a primary that answers, when that changes.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        timeout_s: float,
        allowances: Allowances,
        acks: AckSettings = AckSettings(),  # noqa: B008 -- frozen
        marker_of: Callable[[int], bytes] = KeySpace().ack_marker_of,  # noqa: B008 -- frozen
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._marker_of = marker_of
        self._seeds = seeds
        self._timeout_s = timeout_s
        self._allowances = allowances
        self._acks = acks
        self._supports: list[AckSupport] = []
        self._on_change = on_change
        self._told = False
        self._nodes: dict[Place, Node] = {}
        self._owners: list[Node | None] = [None] * SLOT_COUNT
        self._primaries: list[Node] = []
        self._is_covered = False
        self._map_is_old = False
        self._turn = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False
        self.epoch = 0

    @property
    def is_available(self) -> bool:
        """Whether every slot has a primary that answered when last asked."""
        return self._is_covered and all(node.is_connected for node in self._primaries)

    async def open(self) -> None:
        """Reads the map and connects to every primary; see `Store.open`."""
        refusals = []
        for seed in self._seeds:
            try:
                self._apply(await self._map_of_seed(seed))
                break
            except ServiceError as error:
                refusals.append(error.message)
        else:
            raise _unavailable("; ".join(refusals))
        await asyncio.gather(*(node.wait_connected() for node in self._primaries))
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

    async def check_safe(self) -> StoreUsage:
        """Makes sure that every primary keeps what it acknowledges; see `Store.check_safe`."""
        checks = (check_node(node, self._allowances, in_cluster=True) for node in self._primaries)
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        unsafe = [outcome for outcome in outcomes if isinstance(outcome, UnsafeStore)]
        usages = [outcome for outcome in outcomes if isinstance(outcome, StoreUsage)]
        if unsafe:
            usage = usage_together(usages + [outcome.usage for outcome in unsafe])
            raise UnsafeStore("; ".join(map(str, unsafe)), usage)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return usage_together(usages)

    async def describe(self) -> str:
        """Returns one line about the store; see `Store.describe`."""
        node = self._primaries[0]
        first = describe(await node.info(), await node.config())
        return f"cluster of {len(self._primaries)} primaries; {node}: {first}"

    async def check_acks(self) -> None:
        """Finds out which acknowledgement levels every primary can give; see `Store.check_acks`."""
        self._supports = list(await asyncio.gather(*(node.ack_support() for node in self._primaries)))
        for support in self._supports:
            support.check_default()

    def check_level(self, level: AckLevel) -> None:
        """Refuses what a primary is not set up to give; see `StateStore.check_level`."""
        for support in self._supports:
            support.check(level)

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """Waits for replicas and disks, of all primaries at the same time; see `StateStore.confirm`."""
        by_node: dict[Node | None, list[int]] = {}
        for number, key in enumerate(keys):
            by_node.setdefault(self._owners[slot_of(key)], []).append(number)
        outcomes = await asyncio.gather(*(self._confirm_node(node, level, epoch) for node in by_node))
        refusals: Refusals = {}
        for numbers, refusal in zip(by_node.values(), outcomes, strict=True):
            if refusal is not None:
                refusals.update(dict.fromkeys(numbers, refusal))
        return refusals

    async def _confirm_node(
        self, node: Node | None, level: AckLevel, epoch: int
    ) -> AckLevelNotReached | None:
        """Confirms what one primary holds, as long as no slot and no primary changes."""
        refusal = None
        if node is not None and epoch == self.epoch:
            refusal = await node.confirm(level, node.epoch)
        if refusal is None and (node is None or epoch != self.epoch):
            refusal = not_reached(level, "the cluster has changed since")
        return refusal

    async def load(self, keys: Sequence[bytes]) -> list[Loaded]:
        """Reads records, from all primaries at the same time; see `StateStore.load`."""
        answers = await self._send([_Call(slot_of(key), _packed("MGET", key)) for key in keys])
        failed = [answer for answer in answers if isinstance(answer, ServiceError)]
        if failed and len(failed) == len(answers):
            raise failed[0]
        return [
            self._read("MGET", slot_of(key), answer, lambda reply: records_of(reply, 1)[0])
            for key, answer in zip(keys, answers, strict=True)
        ]

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """Replaces records, on all primaries at the same time; see `StateStore.commit`."""
        ttl_ms = math.ceil(ttl_s * 1000)
        slots = [slot_of(key) for part in writes for key in part.keys]
        requests = pack_scripts(b"EVALSHA", SCRIPT_SHA, writes, ttl_ms)
        answers = await self._send(list(map(_Call, slots, requests)))
        unknown = [number for number, answer in enumerate(answers) if is_unknown_script(answer)]
        if unknown:
            requests = pack_scripts(b"EVAL", SCRIPT, writes, ttl_ms)
            again = await self._send([_Call(slots[number], requests[number]) for number in unknown])
            for number, answer in zip(unknown, again, strict=True):
                answers[number] = answer
        return self._refusals(slots, answers)

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """Moves a record to where it is kept for inspection; see `StateStore.set_aside`."""
        [moved] = await self._send([_Call(slot_of(key), _packed(*set_aside_command(key, record, ttl_s)))])
        if isinstance(moved, ServiceError):
            raise moved
        return bool(moved)

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; see `StateStore.time_to_live_s`."""
        [left_ms] = await self._send([_Call(slot_of(key), _packed("PTTL", key))])
        seconds = self._read("PTTL", slot_of(key), left_ms, seconds_of)
        if isinstance(seconds, ServiceError):
            raise seconds
        return seconds

    async def ping(self) -> None:
        """Asks every primary for a sign of life; see `Store.ping`."""
        outcomes = await asyncio.gather(
            *(node.ask("PING") for node in self._primaries), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _refusals(self, slots: Sequence[int], answers: Sequence[Reply | ServiceError]) -> Refusals:
        refusals: Refusals = {}
        for number, (slot, answer) in enumerate(zip(slots, answers, strict=True)):
            if answer != []:
                said = self._read(
                    "the script", slot, answer, lambda reply: refusals_of(reply, 1, self._refusal)
                )
                refusals[number] = said if isinstance(said, ServiceError) else said[0]
        return refusals

    def _read(
        self, command: str, slot: int, answer: Reply | ServiceError, read: Callable[[Reply], Value]
    ) -> Value | ServiceError:
        """Reads the reply of a slot's primary, which is dropped if it cannot be one; errors stay."""
        if isinstance(answer, ServiceError):
            return answer
        try:
            return read(answer)
        except ValueError:
            why = f"the reply to {command} cannot be one"
            node = self._owners[slot]
            if node is not None:
                node.leave(why)
            return _unavailable(why)

    # -- calls --------------------------------------------------------------------------------

    async def _send(self, calls: Sequence[_Call]) -> list[Reply | ServiceError]:
        """Sends each call to the primary of its slot, and to where it is redirected.

        Returns:
            Its reply, or what became of it; NOSCRIPT is a reply.
        """
        answers: list[Reply | ServiceError] = [None] * len(calls)
        routes = {number: _Route(self._owners[call.slot]) for number, call in enumerate(calls)}
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        attempt = 0
        while routes:
            redirected: dict[int, _Route] = {}
            for number, answer in (await self._send_once(calls, routes)).items():
                if not isinstance(answer, hiredis.ReplyError) or is_unknown_script(answer):
                    answers[number] = answer
                    continue
                route = self._redirect(str(answer), routes[number], calls[number].slot)
                if route is None or asyncio.get_running_loop().time() > deadline_s:
                    answers[number] = self._refusal(str(answer))
                else:
                    redirected[number] = route
            routes = redirected
            if routes:
                await self._before_redirected(routes, attempt)
            attempt += 1
        return answers

    async def _send_once(
        self, calls: Sequence[_Call], routes: dict[int, _Route]
    ) -> dict[int, Reply | ServiceError]:
        by_node: dict[Node | None, list[int]] = {}
        for number, route in routes.items():
            by_node.setdefault(route.node, []).append(number)
        answers: dict[int, Reply | ServiceError] = {}
        under_way = []
        for node, numbers in by_node.items():
            requests: list[bytes] = []
            for number in numbers:
                requests += [_ASKING] * routes[number].asking
                requests.append(calls[number].request)
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

    def _redirect(self, message: str, route: _Route, slot: int) -> _Route | None:
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
        self._owners[slot] = node
        self.epoch += 1
        self._refresh_soon()
        return _Route(node)

    async def _before_redirected(self, routes: dict[int, _Route], attempt: int) -> None:
        await asyncio.sleep(REDIRECT_PAUSES_S[min(attempt, len(REDIRECT_PAUSES_S) - 1)])
        nodes = {route.node for route in routes.values() if route.node is not None}
        waits = (node.wait_connected() for node in nodes)
        await asyncio.gather(*waits, return_exceptions=True)  # sending tells who is not

    def _refusal(self, message: str) -> ServiceError:
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
        node = Node(fixed(seed), timeout_s=self._timeout_s)
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
            self.epoch += 1
        self._owners = owners
        self._is_covered = None not in owners
        self._primaries = [self._nodes[place] for place in places]
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
            self.epoch += 1
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


def _packed(*command: Any) -> bytes:
    request: bytes = hiredis.pack_command(command)
    return request


def _unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable(f"store: {why}", retry_after_s=RETRY_AFTER_S)
