"""Rows on their way to a server, and the message that carries them."""

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.client.ledger import Kind
from holdfast.client.reply import StepReply
from holdfast.pending import Tokens
from holdfast.v1 import holdfast_pb2 as pb

if TYPE_CHECKING:
    from holdfast.client.batcher import Batcher


class Sent:
    """A chunk as a row of a batch, whose reply somebody waits for.

    Args:
        kind: What it has in common with others of a message.
        session_id: As of Chunk, as are the others.
        position: See there.
        acknowledged: See there.
        incarnation: See there.
        history_digest: See there.
        tokens: See there.
        until_s: Monotonic time at which it is given up; see `limit`.
        cursor: As of Chunk.

    Attributes:
        batcher: Sends it.
        reply: Of the row; None where it has to be sent alone. Raises HoldfastError.
        is_applied: It has to be since its outputs did not fit into the reply.
        since_s: Monotonic time at which it was taken.
    """

    __slots__ = (
        "acknowledged", "batcher", "cursor", "history_digest", "incarnation", "is_applied", "kind",
        "position", "reply", "session_id", "since_s", "tokens", "until_s",
    )  # fmt: skip

    batcher: "Batcher"
    reply: asyncio.Future[StepReply | None]

    def __init__(
        self,
        kind: Kind,
        session_id: str,
        position: int,
        acknowledged: int,
        incarnation: int,
        history_digest: int,
        tokens: Tokens,
        until_s: float = math.inf,
        cursor: bytes = b"",
    ) -> None:
        self.kind = kind
        self.session_id = session_id
        self.position = position
        self.acknowledged = acknowledged
        self.incarnation = incarnation
        self.history_digest = history_digest
        self.tokens = tokens
        self.until_s = until_s
        self.cursor = cursor
        self.is_applied = False
        self.since_s = time.monotonic()

    def limit(self, until_s: float) -> None:
        """Sets when it is given up."""
        self.until_s = until_s
        self.batcher.wake_at(until_s)


class Message:
    """Rows of one kind that leave together.

    Attributes:
        is_answered: Some of its rows are.
        size_bytes: As it was sent.
        number: In the recorded history.
    """

    __slots__ = ("is_answered", "kind", "number", "rows", "sent_s", "size_bytes")

    def __init__(self, kind: Kind, rows: list[Sent], sent_s: float) -> None:
        self.kind = kind
        self.rows = rows
        self.sent_s = sent_s
        self.size_bytes = 0
        self.is_answered = False
        self.number = 0

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(row.reply.done() for row in self.rows)

    def to_request(self, tag: int) -> pb.StreamBatchesRequest:
        """Writes it."""
        kind, rows = self.kind, self.rows
        batch = pb.Batch(
            model=pb.ModelRef(name=kind.model, version=kind.version),
            session_ids=[row.session_id for row in rows],
            positions=[row.position for row in rows],
            acknowledged_positions=[row.acknowledged for row in rows],
            incarnations=[row.incarnation for row in rows],
            history_digests=[row.history_digest for row in rows],
            tokens_per_row=kind.token_count,
            outputs=kind.asked.selection,
            ack_level=kind.asked.ack_level,
            in_parts=True,
            timeout_s=_left_s(max([row.until_s for row in rows])),
            tag=tag,
        )
        cursors = [row.cursor for row in rows]
        if any(cursors):
            batch.cursors.extend(cursors)
        tokens: list[Any] = [row.tokens for row in rows]
        if kind.tokens == "text":
            batch.text = b"".join(tokens)
        elif kind.tokens == "ids":
            batch.ids.values.extend(np.concatenate(tokens).tolist())
        else:
            batch.features = np.concatenate(tokens).astype("<f4", copy=False).tobytes()
        request = pb.StreamBatchesRequest(batch=batch)
        self.size_bytes = request.ByteSize()
        return request


def _left_s(until_s: float) -> float:
    """Returns how long a limit lasts; 0 is no limit."""
    return max(0.001, until_s - time.monotonic()) if until_s < math.inf else 0.0
