"""The store's flag in a record: whether its session may have a sibling, the hash beside it. Pure.

Only the scripts of the store set it, and they keep it over every new record: who has a session in memory
goes on when another replica saves a checkpoint. It is no part of a `Record`, nor of what the checksum
covers. As the last byte of the stamp, which no digest needs, it costs a commit nothing where it is 0: the
stamp that is found is then, to the byte, the one expected.
"""

import numpy as np
from numpy.typing import NDArray

FLAG_PLACE = 39


def has_sibling(data: bytes) -> bool:
    """Whether the session of a record, as it was read, may have a sibling."""
    return data[FLAG_PLACE : FLAG_PLACE + 1] == b"\1"


def without_flag(data: bytes) -> bytes:
    """Returns a record that was read, or its beginning, as it was sent to the store."""
    return data[:FLAG_PLACE] + b"\0" + data[FLAG_PLACE + 1 :] if has_sibling(data) else data


def rows_without_flag(matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns records that were read, (B, size), as they were sent to the store."""
    has_flag = matrix[:, FLAG_PLACE] == 1
    if np.count_nonzero(has_flag):
        matrix = matrix.copy()
        matrix[has_flag, FLAG_PLACE] = 0
    return matrix
