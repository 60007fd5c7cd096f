"""Whether the numbers of a tensor are weights that a training can have left. Pure."""

from typing import Any

import numpy as np

_FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
"""By ONNX's number of the element type."""


def are_finite(element_type: int, data: bytes) -> bool:
    """Says whether numbers are free of NaN and infinity.

    A single number may be anything, as a bound is, and numbers that are all 0 or minus infinity are a mask.

    Args:
        element_type: ONNX's number; of any that is no float, everything is finite.
        data: Little-endian; bytes beyond the last whole number are not looked at.
    """
    dtype = _FLOATS.get(element_type)
    if dtype is None:
        return True
    numbers = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
    with np.errstate(all="ignore"):
        if numbers.size <= 1 or np.isfinite(numbers.dot(numbers)) or np.isfinite(numbers).all():
            return True
    return bool(((numbers == 0) | np.isneginf(numbers)).all())
