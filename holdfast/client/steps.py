"""Sends chunks of sessions: in a batch with those of others where that is possible, else alone."""

import asyncio
import math
import zlib
from typing import Any

from holdfast.client.batcher import Batcher
from holdfast.client.calls import Calls
from holdfast.client.ledger import Entry, Ledger
from holdfast.client.message import Sent
from holdfast.client.reply import StepReply
from holdfast.v1 import holdfast_pb2 as pb

LARGE_BYTES = 64 * 1024
"""A chunk whose tokens take more goes alone: it would hold up others, and be too large with them."""


class Steps:
    """The chunks of one client.

    Args:
        calls: Of the client.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._batchers: dict[Any, list[Batcher]] = {}

    async def step(self, ledger: Ledger, entry: Entry, until_s: float, stub: Any) -> StepReply:
        """Sends a chunk once, over the connection of `stub`.

        Args:
            ledger: Of its session.
            entry: The chunk, or a repetition.
            until_s: Monotonic time at which it is given up.
            stub: Of a connection.

        Returns:
            Its reply; nobody has looked yet whether it is the right one.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        sent = self.send(ledger, entry, stub, until_s)
        if sent is not None:
            try:
                found = await sent.reply
            except asyncio.CancelledError as error:
                raise self._calls.lifetime.explain(error) from None
            if found is not None:
                return found
            entry.is_applied = entry.is_applied or sent.is_applied
        return await self.step_alone(ledger, entry, until_s, stub)

    def send(self, ledger: Ledger, entry: Entry, stub: Any, until_s: float = math.inf) -> Sent | None:
        """Sends a chunk once with others; None if it has to go alone.

        Args:
            ledger: Of its session.
            entry: The chunk, or a repetition.
            stub: Of a connection.
            until_s: Monotonic time at which it is given up; may be set later, by `Sent.limit`.
        """
        kind = ledger.kind_of(entry)
        if entry.asked.state or kind.size_bytes > LARGE_BYTES:
            return None
        row = Sent(
            kind,
            ledger.session_id,
            entry.position,
            min(entry.position, ledger.acknowledged),
            ledger.incarnation,
            entry.history_digest,
            entry.tokens,
            until_s,
            entry.cursor,
        )
        return self._batcher(stub.current(), ledger.session_id).submit(row)

    async def step_alone(self, ledger: Ledger, entry: Entry, until_s: float, stub: Any) -> StepReply:
        """Sends a chunk once, by a call of its own; see `step`."""
        request = pb.StepRequest(chunk=ledger.to_chunk(entry))
        return StepReply((await self._calls.call_once("Step", request, until_s, stub)).result)

    async def close(self) -> None:
        """Ends the streams of batches in good form, if nothing is under way on them."""
        batchers, self._batchers = self._batchers, {}
        if not self._calls.is_inherited:
            await asyncio.gather(*(one.close() for several in batchers.values() for one in several))

    def _batcher(self, connection: Any, session_id: str) -> Batcher:
        """Returns where a session's chunks go: over a stream of its own to each replica.

        gRPC gives streams that open one after the other one replica after the other. A session keeps its
        stream, and so finds its state in the memory of its replica.
        """
        batchers = self._batchers.get(connection)
        if batchers is None:
            in_use = {
                one: several for one, several in self._batchers.items() if any(s.is_in_use for s in several)
            }
            batchers = in_use[connection] = []
            self._batchers = in_use
        count = self._calls.replica_count
        if len(batchers) < count:
            batchers += [
                Batcher(self._calls, connection, renews=count > 1) for _ in range(len(batchers), count)
            ]
            for batcher in batchers:
                batcher.open()
        return batchers[zlib.crc32(session_id.encode()) % count if count > 1 else 0]
