"""The reply to a chunk."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.client.ack_levels import to_name
from holdfast.client.tokens import to_arrays
from holdfast.v1 import holdfast_pb2 as pb


class StepReply:
    """What a chunk of k tokens gave. Parts are read when asked for.

    Attributes:
        position: Tokens the session has consumed, this chunk included.
        replayed: The chunk had been applied before; this is the reply kept from then.
        ack_level: How durable the commit was when the reply left: `memory`, `fsynced`, `replicated` or
            `fsynced+replicated`.
        model_version: Version that ran.
        token_count: k.
        session_id: Whose chunk it was.
        history_digest: Of the tokens consumed, see `holdfast.history_digest`; 0 if the server tells none.
    """

    def __init__(self, result: pb.ChunkResult) -> None:
        self._result = result
        self.session_id: str = result.session_id
        self.history_digest: int = result.history_digest
        self.position: int = result.position
        self.replayed: bool = result.replayed
        self.ack_level: str = to_name(result.ack_level)
        self.model_version: int = result.model_version
        self.token_count: int = result.outputs.token_count
        self._size_bytes: int = result.ByteSize()

    @cached_property
    def top(self) -> list[list[tuple[int, float]]]:
        """Per token of the chunk the likeliest next tokens, or classes: (id, log-probability), best first.

        One entry, of the last token, where the model ranks once a chunk.
        """
        outputs = self._result.outputs
        pairs = list(zip(outputs.top_ids, outputs.top_log_probs, strict=True))
        width = outputs.top_k
        count = len(pairs) // width if pairs else self.token_count
        return [pairs[row * width : (row + 1) * width] for row in range(count)]

    def candidates(self, labels: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Per entry of `top` the same by name: (label, probability), best first.

        Args:
            labels: Of the model, see `holdfast.labels_of`.
        """
        return [[(labels[number], math.exp(log_prob)) for number, log_prob in row] for row in self.top]

    @cached_property
    def token_log_probs(self) -> NDArray[np.float32] | None:
        """Log p(token | all tokens before it), float32 (k,); None if not asked for."""
        values = self._result.outputs.token_log_probs
        return np.array(values, np.float32) if values else None

    @cached_property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """Output tensors asked for, (k, ...) by name; (1, ...) of those that are of the last token only."""
        return to_arrays(self._result.outputs.tensors)

    @cached_property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """State after the chunk by name, without a batch axis, if asked for."""
        return to_arrays(self._result.outputs.state)

    def __repr__(self) -> str:
        return f"StepReply(position={self.position}, replayed={self.replayed})"


def size_of(reply: StepReply) -> int:
    """Returns the bytes that a reply took on the wire."""
    return reply._size_bytes  # noqa: SLF001
