"""The state store in Redis or Valkey: what is sent to it, and what its replies mean, in any topology.

The records of a commit are independent, so they go in as many calls as the topology needs. A call is sent
again only if a server has refused it without executing anything; one whose reply did not come never is.
"""

import asyncio
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import hiredis

from holdfast.errors import AckLevelNotReached, ServiceError, StoreUnavailable
from service.store.address import Address
from service.store.beside import Checkpoint, CheckpointHead, checkpoint_field, decode_checkpoint
from service.store.confirmation import AckSupport, not_reached
from service.store.error_table import RETRY_AFTER_S
from service.store.keys import KeySpace, set_aside_key, sibling_key
from service.store.listing import Listing
from service.store.node import Node
from service.store.protocol import AckLevel, Found, Loaded, Refusals, UnsafeStore, Writes
from service.store.replies import (
    bytes_of,
    checkpoints_of,
    is_unknown_script,
    records_of,
    records_with_cursors_of,
    refusals_of,
    saved_of,
    seconds_of,
)
from service.store.safety import Allowances, StoreUsage, describe, usage_together
from service.store.topology import Answer, Call, Topology, pack_arguments

COMMIT = files(__package__).joinpath("commit.lua").read_bytes()
COMMIT_SHA = hashlib.sha1(COMMIT, usedforsecurity=False).hexdigest().encode()
SET_ASIDE = files(__package__).joinpath("set_aside.lua").read_bytes()
SAVE_CHECKPOINT = files(__package__).joinpath("save_checkpoint.lua").read_bytes()
LIST_CHECKPOINTS = files(__package__).joinpath("list_checkpoints.lua").read_bytes()
LOAD_WITH_CURSORS = files(__package__).joinpath("load_with_cursors.lua").read_bytes()

Value = TypeVar("Value")


class Store:
    """Implements `StateStore`, and what a server needs beyond it.

    Args:
        topology: Says which node has a key.
        allowances: Dangers that `check_safe` does not mind.
        key_space: Where the keys of this deployment lie.

    Attributes:
        epoch: See `StateStore.epoch`.
        first_place, scan, heads, quarantine_reason: See `StateStore`, and `Listing`.
    """

    def __init__(self, topology: Topology, allowances: Allowances, key_space: KeySpace) -> None:
        self._topology = topology
        self._allowances = allowances
        self._key_space = key_space
        self._supports: list[AckSupport] = []
        self.epoch = 0
        listing = Listing(topology, key_space)
        self.first_place, self.scan, self.heads = listing.first_place, listing.scan, listing.heads
        self.quarantine_reason = listing.quarantine_reason

    @property
    def is_available(self) -> bool:
        """Whether every key has a server that answered when last asked."""
        return self._topology.is_available

    async def open(self) -> None:
        """Connects.

        Raises:
            StoreUnavailable: No server answers there, or it refuses the greeting.
        """
        await self._topology.open(self._moved)

    async def close(self) -> None:
        """Closes its connections; requests under way fail."""
        await self._topology.close()

    async def check_safe(self) -> StoreUsage:
        """Makes sure that every primary keeps what it acknowledges; returns what they use.

        Raises:
            UnsafeStore: It may evict sessions, does not write them to disk, or is too old.
            StoreUnavailable: No answer in time.
        """
        in_cluster = self._topology.is_cluster
        checks = (node.check(self._allowances, in_cluster=in_cluster) for node in self._topology.nodes)
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

    async def check_acks(self) -> None:
        """Finds out which acknowledgement levels every primary can give, and makes sure of the default.

        Raises:
            AckLevelUnsupported: Not the default.
            StoreUnavailable: No answer in time.
        """
        self._supports = await asyncio.gather(*(node.ack_support() for node in self._topology.nodes))
        for support in self._supports:
            support.check_default()

    async def describe(self) -> str:
        """Returns one line for the operator: what the store is, and what its settings promise.

        Raises:
            StoreUnavailable: No answer in time.
        """
        nodes = self._topology.nodes
        kind = f"cluster of {len(nodes)} primaries; " if self._topology.is_cluster else ""
        place = "" if self._key_space.is_default else f"; its keys {self._key_space.pattern}"
        return f"{kind}{nodes[0]}: {describe(await nodes[0].info(), await nodes[0].config())}{place}"

    def where(self) -> Address:
        """Returns the address of a primary that answered when last asked, one by chance.

        Raises:
            StoreUnavailable: None did.
        """
        if not (answering := self._answering()):
            raise StoreUnavailable("the store does not answer", retry_after_s=RETRY_AFTER_S)
        return random.choice(answering)  # noqa: S311 -- no secret

    def is_elsewhere(self, address: Address) -> bool:
        """Whether the store answers, and none of its primaries is there."""
        answering = self._answering()
        return bool(answering) and address not in answering

    def channel(self, name: str) -> bytes:
        """Returns the name of a channel of this deployment: of its keys, and of its database."""
        address = self._topology.nodes[0].address
        assert address is not None, "bug: a channel of a store that was not opened"
        return self._key_space.channel(address.database, name)

    async def ping(self) -> None:
        """Asks every primary for a sign of life.

        Raises:
            StoreUnavailable: No answer in time.
        """
        pings = (node.ask("PING") for node in self._topology.nodes)
        for outcome in await asyncio.gather(*pings, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def check_level(self, level: AckLevel) -> None:
        """Refuses what a primary is not set up to give; see `StateStore.check_level`."""
        assert self._supports, "bug: nobody asked what the store can give"
        for support in self._supports:
            support.check(level)

    async def load(self, keys: Sequence[bytes]) -> list[Loaded]:
        """Reads records in one round trip; see `StateStore.load`."""
        return await self._load(keys, _mget, lambda failed: failed, records_of)

    async def load_with_cursors(self, keys: Sequence[bytes]) -> list[tuple[Loaded, bytes]]:
        """Reads records with the cursors beside them; see `StateStore.load_with_cursors`."""
        refusal = self._topology.refusal
        return await self._load(
            keys, _load_with_cursors, lambda failed: (failed, b""), records_with_cursors_of, refusal
        )

    async def _load(
        self,
        keys: Sequence[bytes],
        ask: Callable[[Sequence[bytes]], Call],
        fail: Callable[[ServiceError], Value],
        read: Callable[..., list[Value]],
        *details: Any,
    ) -> list[Value]:
        """Reads something of each key in one round trip.

        Args:
            keys: See there.
            ask: Packs the call for keys that may go together.
            fail: Gives what stands for a key that could not be read where others could.
            read: Reads the reply to a call; called with it, the number of keys, and
            details: see there.
        """
        if not keys:
            return []  # MGET without a key is an error
        keys = self._key_space.placed(keys)
        shares = self._topology.together(keys)
        answers = await self._topology.send([ask(share) for share in shares])
        found: list[Value] = []
        failed = []
        for share, answer in zip(shares, answers, strict=True):
            part = self._read("a read", share[0], answer, read, len(share), *details)
            if isinstance(part, ServiceError):
                failed.append(part)
                found += [fail(part)] * len(share)
            else:
                found += part
        if failed and len(failed) == len(answers):
            raise failed[0]
        return found

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """Replaces records in one round trip; see `StateStore.commit`."""
        if not self._key_space.is_default:
            writes = [part._replace(keys=self._key_space.placed(part.keys)) for part in writes]
        ttl_ms = math.ceil(ttl_s * 1000)
        calls = self._topology.pack(b"EVALSHA", COMMIT_SHA, writes, ttl_ms)
        answers = await self._topology.send(calls)
        if answers.count([]) == len(answers):
            return {}
        unknown = [number for number, answer in enumerate(answers) if is_unknown_script(answer)]
        if unknown:
            # a server that does not know the script has executed nothing, so asking again is safe
            calls = self._topology.pack(b"EVAL", COMMIT, writes, ttl_ms)
            again = await self._topology.send([calls[number] for number in unknown])
            for number, answer in zip(unknown, again, strict=True):
                answers[number] = answer
        size = sum(len(part.keys) for part in writes) // len(calls)  # all records, or one
        return self._refusals(calls, answers, size)

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """Waits for replicas and disks, of all primaries at the same time; see `StateStore.confirm`."""
        keys = self._key_space.placed(keys)
        by_node: dict[Node | None, list[int]] = {}
        first = 0
        for share in self._topology.together(keys):
            end = first + len(share)
            by_node.setdefault(self._topology.node_of(share[0]), []).extend(range(first, end))
            first = end
        waits = [self._confirm_node(node, level, epoch) for node in by_node]
        outcomes = await asyncio.gather(*waits) if len(waits) > 1 else [await waits[0]]
        refusals: Refusals = {}
        for numbers, refusal in zip(by_node.values(), outcomes, strict=True):
            if refusal is not None:
                refusals.update(dict.fromkeys(numbers, refusal))
        return refusals

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """Moves a record to where it is kept for inspection; see `StateStore.set_aside`."""
        [key] = self._key_space.placed((key,))
        ttl_ms = math.ceil(ttl_s * 1000)
        keys = key, set_aside_key(key), sibling_key(key)
        return bool(await self._ask(key, "EVAL", SET_ASIDE, len(keys), *keys, record, ttl_ms))

    async def save_checkpoint(
        self, key: bytes, stamp: bytes, name: str, max_count: int
    ) -> CheckpointHead | Found | None:
        """Keeps a record under a name beside it; see `StateStore.save_checkpoint`."""
        [key], field = self._key_space.placed((key,)), checkpoint_field(name)
        arguments = 2, key, sibling_key(key), stamp, field, max_count
        reply = await self._ask(key, "EVAL", SAVE_CHECKPOINT, *arguments)
        return self._read_one("a checkpoint", key, reply, saved_of, field)

    async def list_checkpoints(self, key: bytes) -> list[CheckpointHead]:
        """Returns the checkpoints beside a record; see `StateStore.list_checkpoints`."""
        [key] = self._key_space.placed((key,))
        reply = await self._ask(key, "EVAL", LIST_CHECKPOINTS, 1, sibling_key(key))
        return self._read_one("a list of checkpoints", key, reply, checkpoints_of)

    async def load_checkpoint(self, key: bytes, name: str) -> Checkpoint | None:
        """Reads a checkpoint; see `StateStore.load_checkpoint`."""
        [key] = self._key_space.placed((key,))
        reply = await self._ask(key, "HGET", sibling_key(key), checkpoint_field(name))
        data = self._read_one("HGET", key, reply, bytes_of)
        return None if data is None else decode_checkpoint(data)

    async def delete_checkpoint(self, key: bytes, name: str) -> bool:
        """Deletes a checkpoint; see `StateStore.delete_checkpoint`."""
        [key] = self._key_space.placed((key,))
        return bool(await self._ask(key, "HDEL", sibling_key(key), checkpoint_field(name)))

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; see `StateStore.time_to_live_s`."""
        [key] = self._key_space.placed((key,))
        return self._read_one("PTTL", key, await self._ask(key, "PTTL", key), seconds_of)

    def _answering(self) -> list[Address]:
        return [node.address for node in self._topology.nodes if node.is_connected and node.address]

    def _moved(self) -> None:
        self.epoch += 1

    async def _ask(self, key: bytes, *command: Any) -> Answer:
        """Executes a command about a key; what became of it is raised if it is no reply."""
        [answer] = await self._topology.send([_call(key, *command)])
        if isinstance(answer, ServiceError):
            raise answer
        return answer

    def _refusals(self, calls: Sequence[Call], answers: Sequence[Answer], size: int) -> Refusals:
        """Reads what the script says of `size` records a call."""
        refusals: Refusals = {}
        for number, (call, answer) in enumerate(zip(calls, answers, strict=True)):
            said = self._read("the script", call.key, answer, refusals_of, size, self._topology.refusal)
            if isinstance(said, ServiceError):
                if not self._topology.is_cluster:
                    raise said  # of no record is anything known
                said = {0: said}
            refusals.update({number * size + place: refusal for place, refusal in said.items()})
        return refusals

    def _read_one(
        self, command: str, key: bytes, answer: Answer, read: Callable[..., Value], *details: Any
    ) -> Value:
        """Reads a reply as `_read` does; what is none is raised."""
        value = self._read(command, key, answer, read, *details)
        if isinstance(value, ServiceError):
            raise value
        return value

    def _read(
        self, command: str, key: bytes, answer: Answer, read: Callable[..., Value], *details: Any
    ) -> Value | ServiceError:
        """Reads the reply of a key's node, which is left if it cannot be one; errors stay.

        Whatever came over that connection may belong to another request, so no other reply can be trusted
        either.
        """
        if isinstance(answer, ServiceError):
            return answer
        try:
            return read(answer, *details)
        except ValueError:
            why = f"the reply to {command} cannot be one"
            node = self._topology.node_of(key)
            if node is not None:
                node.leave(why)
            return StoreUnavailable(f"{node or 'store'}: {why}", retry_after_s=RETRY_AFTER_S)

    async def _confirm_node(
        self, node: Node | None, level: AckLevel, epoch: int
    ) -> AckLevelNotReached | None:
        """Confirms what one primary holds, as long as none of them is lost and no slot moves."""
        refusal = None
        if node is not None and epoch == self.epoch:
            refusal = await node.confirm(level, node.epoch)
        if refusal is None and (node is None or epoch != self.epoch):
            refusal = not_reached(level, self._topology.why_moved)
        return refusal


def _mget(keys: Sequence[bytes]) -> Call:
    return Call(keys[0], (b"*%d\r\n$4\r\nMGET\r\n" % (1 + len(keys)) + pack_arguments(keys),))


def _load_with_cursors(keys: Sequence[bytes]) -> Call:
    return _call(keys[0], "EVAL", LOAD_WITH_CURSORS, len(keys), *keys)


def _call(key: bytes, *command: Any) -> Call:
    return Call(key, (hiredis.pack_command(command),))
