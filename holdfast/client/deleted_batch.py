"""Many sessions, deleted together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from holdfast.client.status import from_status
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb


class DeletedBatch:
    """Where B sessions ended that were deleted together. Entries of rows in `errors` are zero.

    Attributes:
        session_ids: Of each, as asked for.
        positions: Tokens each session had consumed, int64 (B,).
        errors: Error by row, for sessions that were not deleted.
    """

    def __init__(self, session_ids: Sequence[str], deleted: pb.DeleteBatchResponse) -> None:
        self.session_ids = tuple(session_ids)
        self.positions: NDArray[np.int64] = np.array(deleted.positions, np.int64)
        self.errors: dict[int, HoldfastError] = {
            error.row: from_status(error.status) for error in deleted.errors
        }

    def __repr__(self) -> str:
        return f"DeletedBatch(rows={len(self.session_ids)}, errors={len(self.errors)})"
