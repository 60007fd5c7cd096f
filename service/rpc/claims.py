"""What the rows of a batch message claim of their sessions, as columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import MAX_NUMBER
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.rows import NOT_GIVEN, Rows
from service.engine.rules import Claim

Column = NDArray[np.int64]


class Claims(NamedTuple):
    """The claims of B rows; None is a column that is not given.

    Attributes:
        positions: int64 (B,), as sent; all are `NOT_GIVEN` where no row names one.
        acknowledged: Positions of the last replies that the clients have, int64 (B,).
        incarnations: int64 (B,); 0 is any.
        digests: History digests at the positions, int64 (B,); 0 is any.
        names_positions: Whether rows name positions.
    """

    positions: Column
    acknowledged: Column | None
    incarnations: Column | None
    digests: Column | None
    names_positions: bool

    def are_right(self, token_count: int) -> bool:
        """Tells whether `rules.check` would let every row, of so many tokens, pass."""
        positions, acknowledged, incarnations, digests, names_positions = self
        if names_positions and not (positions.min() >= 0 and positions.max() <= MAX_NUMBER - token_count):
            return False
        for column in (incarnations, digests):
            if column is not None and not (column.min() >= 0 and column.max() <= MAX_NUMBER):
                return False
        if digests is not None and not names_positions:
            return False
        if acknowledged is None:
            return True
        return bool(((acknowledged >= 0) & (acknowledged <= positions)).all())

    def of(self, every: Rows, row: int) -> Claim:
        """Returns what a row says of itself; the values of `NOT_GIVEN` are as wrong as others below 0."""
        return every.claim(row)._replace(
            position=int(self.positions[row]) if self.names_positions else None,
            acknowledged=None if self.acknowledged is None else int(self.acknowledged[row]),
        )


def claims_of(batch: pb.Batch) -> Claims:
    """Returns what the rows of a message claim; the lengths of its columns are not checked here."""
    positions = _column(batch.positions)
    return Claims(
        np.full(len(batch.session_ids), NOT_GIVEN) if positions is None else positions,
        _column(batch.acknowledged_positions),
        _column(batch.incarnations),
        _column(batch.history_digests),
        positions is not None,
    )


def _column(numbers: Sequence[int]) -> Column | None:
    return np.fromiter(numbers, np.int64, len(numbers)) if numbers else None
