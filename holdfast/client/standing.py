"""Where the sessions of a batch stand, as the caller knows it: by numbers, or by what the server told."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from holdfast.client.options import positions_list
from holdfast.errors import HoldfastError


@runtime_checkable
class Told(Protocol):
    """What a server told of sessions: an `OpenedBatch`, or the `BatchReply` to the batch before."""

    session_ids: tuple[str, ...]
    positions: NDArray[np.int64]
    incarnations: NDArray[np.int64]
    history_digests: NDArray[np.int64]
    errors: dict[int, HoldfastError]


Positions = Sequence[int] | NDArray[Any] | Told


class Standing(NamedTuple):
    """Where B sessions stand.

    Attributes:
        positions: Of each; None appends wherever they stand.
        incarnations: Of each; None is any.
        history_digests: At those positions; None is any.
    """

    positions: list[int] | None
    incarnations: list[int] | None = None
    history_digests: list[int] | None = None


def standing_of(session_ids: Sequence[str], positions: Positions | None) -> Standing:
    """Reads where sessions stand.

    Raises:
        TypeError: A position is not an integer.
        ValueError: It is not one position for each session, or is told of others, or of some that failed.
    """
    if not isinstance(positions, Told):
        return Standing(positions_list(positions, len(session_ids)))
    _check_told(session_ids, positions)
    return Standing(
        positions.positions.tolist(), positions.incarnations.tolist(), positions.history_digests.tolist()
    )


def _check_told(session_ids: Sequence[str], told: Told) -> None:
    if tuple(session_ids) != told.session_ids:
        raise ValueError("positions are told of other sessions than these, or in another order")
    if told.errors:
        failed = ", ".join(
            f"{session_ids[row]!r} ({error.reason})" for row, error in sorted(told.errors.items())
        )
        raise ValueError(f"positions are not known of sessions that failed: {failed}")
