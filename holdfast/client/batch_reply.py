"""The reply to a batch, and what one of its rows says."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.client.ack_levels import to_name
from holdfast.client.reply import StepReply
from holdfast.client.status import from_status
from holdfast.client.tokens import to_arrays
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb


class BatchReply:
    """What B rows of T tokens gave. Entries of rows in `errors` are zero.

    Where none failed it can be given as the `positions` of the next batch of the same sessions.

    Attributes:
        session_ids: Of each row, as sent.
        separate_rows: By row, replies whose outputs do not fit into the columns: replays of requests for
            other outputs, and rows that ran on another version of the model. Where `token_count` is 0 the
            outputs would have been too large for this message: get them by a step at the row's position.
        errors: Error by row, for rows that changed nothing.
        replayed_rows: Rows that had been applied before; their replies are those kept from then.
        model_version: Version that ran.
        ack_level: How durable the commits were when the reply left; see `StepReply`.
        message: The reply as it came.
    """

    def __init__(self, result: pb.BatchResult, session_ids: Sequence[str] = ()) -> None:
        self.message = result
        self.session_ids = tuple(session_ids)
        self._outputs = result.outputs
        self._row_count = len(result.positions)
        self.errors: dict[int, HoldfastError] = {
            error.row: from_status(error.status) for error in result.errors
        }
        self.replayed_rows: list[int] = list(result.replayed_rows)
        self.model_version: int = result.model_version
        self.ack_level: str = to_name(result.ack_level)
        self.separate_rows: dict[int, StepReply] = {
            separate.row: StepReply(_as_chunk_result(result, separate, self.session_ids))
            for separate in result.separate_rows
        }

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Tokens each session has consumed, int64 (B,)."""
        return np.array(list(self.message.positions), np.int64)

    @cached_property
    def incarnations(self) -> NDArray[np.int64]:
        """Of each session, int64 (B,)."""
        return np.array(list(self.message.incarnations), np.int64)

    @cached_property
    def history_digests(self) -> NDArray[np.int64]:
        """Of those tokens, int64 (B,), see `holdfast.history_digest`; empty if the server tells none."""
        return np.array(list(self.message.history_digests), np.int64)

    @cached_property
    def top_ids(self) -> NDArray[np.int32]:
        """The likeliest next tokens after each token, best first: int32 (B, T, top_k)."""
        return self._per_token(self._outputs.top_ids, np.int32, self._outputs.top_k)

    @cached_property
    def top_log_probs(self) -> NDArray[np.float32]:
        """Their log-probabilities, float32 (B, T, top_k)."""
        return self._per_token(self._outputs.top_log_probs, np.float32, self._outputs.top_k)

    @cached_property
    def token_log_probs(self) -> NDArray[np.float32] | None:
        """Log p(token | all tokens before it), float32 (B, T); None if not asked for."""
        values = self._outputs.token_log_probs
        return self._per_token(values, np.float32) if values else None

    @cached_property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """Output tensors asked for, (B, T, ...) by name."""
        rows = self._row_count
        return {
            name: array.reshape(rows, len(array) // rows, *array.shape[1:])
            for name, array in to_arrays(self._outputs.tensors).items()
        }

    def _per_token(self, values: Any, dtype: Any, *width: int) -> NDArray[Any]:
        """Returns values (B, T, ...); T is 1 where they are of the last token only."""
        rows = self._row_count
        found = len(values) // (rows * math.prod(width)) if values else self._outputs.token_count // rows
        return np.array(values, dtype).reshape(rows, found, *width)

    def __repr__(self) -> str:
        return f"BatchReply(rows={self._row_count}, errors={len(self.errors)})"


def _as_chunk_result(
    result: pb.BatchResult, separate: pb.SeparateRow, session_ids: Sequence[str]
) -> pb.ChunkResult:
    """Returns a row with outputs of its own as the reply to a single chunk."""
    row = separate.row
    return pb.ChunkResult(
        session_id=session_ids[row] if session_ids else "",
        history_digest=result.history_digests[row] if result.history_digests else 0,
        position=result.positions[row],
        incarnation=result.incarnations[row],
        replayed=row in result.replayed_rows,
        ack_level=result.ack_level,
        model_version=separate.model_version,
        outputs=separate.outputs,
    )


class RowReply(StepReply):
    """The reply to a chunk that went as a row of a batch. Its parts are views of the batch's.

    Args:
        batch: The reply to the batch.
        row: Its number in it, of one that has no outputs of its own.
        session_id: See `StepReply`, as of the others.
        position: See there.
        history_digest: See there.
        token_count: See there.
        size_bytes: Its share of the message.
        replayed: See there.
    """

    def __init__(
        self,
        batch: BatchReply,
        row: int,
        session_id: str,
        position: int,
        history_digest: int,
        token_count: int,
        size_bytes: int,
        replayed: bool,
    ) -> None:
        self._batch = batch
        self._row = row
        self.session_id = session_id
        self.position = position
        self.history_digest = history_digest
        self.replayed = replayed
        self.ack_level = batch.ack_level
        self.model_version = batch.model_version
        self.token_count = token_count
        self._size_bytes = size_bytes

    @cached_property
    def top(self) -> list[list[tuple[int, float]]]:
        """As of `StepReply`."""
        ids, log_probs = self._batch.top_ids[self._row], self._batch.top_log_probs[self._row]
        return [
            list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), log_probs.tolist(), strict=True)
        ]

    @cached_property
    def token_log_probs(self) -> NDArray[np.float32] | None:
        """As of `StepReply`."""
        values = self._batch.token_log_probs
        return None if values is None else values[self._row]

    @cached_property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """As of `StepReply`."""
        return {name: values[self._row] for name, values in self._batch.outputs.items()}

    @cached_property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """Nothing: what asks for the state is no row of a batch."""
        return {}
