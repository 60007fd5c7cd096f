"""Many sessions, opened together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from holdfast.client.status import from_status
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb


class OpenedBatch:
    """Where B sessions stand that were opened together. Entries of rows in `errors` are zero.

    Where none failed it can be given as the `positions` of the first batch of these sessions.

    Attributes:
        session_ids: Of each, as asked for.
        positions: Tokens each session has consumed, int64 (B,).
        incarnations: Of each session, int64 (B,).
        history_digests: Of those tokens, int64 (B,); see `holdfast.history_digest`.
        model_versions: Version that each session runs on, int64 (B,).
        cursors: Of each session, that of its last chunk that had one; b"" if there is none.
        resumed_rows: Rows that existed already.
        errors: Error by row, for sessions that were not opened.
    """

    def __init__(self, session_ids: Sequence[str], opened: pb.OpenBatchResponse) -> None:
        self.session_ids = tuple(session_ids)
        self.positions: NDArray[np.int64] = np.array(opened.positions, np.int64)
        self.incarnations: NDArray[np.int64] = np.array(opened.incarnations, np.int64)
        self.history_digests: NDArray[np.int64] = np.array(opened.history_digests, np.int64)
        self.model_versions: NDArray[np.int64] = np.array(opened.model_versions, np.int64)
        self.cursors: list[bytes] = list(opened.cursors) or [b""] * len(self.session_ids)
        self.resumed_rows: list[int] = list(opened.resumed_rows)
        self.errors: dict[int, HoldfastError] = {
            error.row: from_status(error.status) for error in opened.errors
        }

    def __repr__(self) -> str:
        return f"OpenedBatch(rows={len(self.session_ids)}, errors={len(self.errors)})"
