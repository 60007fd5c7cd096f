"""Tokens of the rows of a batch. Pure."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from holdfast.client.arrays import to_array, to_float32, to_ids
from holdfast.client.tokens import SupportsArray, as_text

Rows = bytes | bytearray | memoryview | Sequence[Any] | NDArray[Any] | SupportsArray
"""B * T bytes, B texts of T bytes, ids (B,) or (B, T), or features (B, width) or (B, T, width)."""


def normalise_rows(tokens: Any, row_count: int) -> bytes | NDArray[Any]:
    """Returns text as B * T bytes, ids as int64 (B, T), features as float32 (B, T, width).

    The first axis must be as long as there are rows: an array that is turned round, (T, B), has as many
    numbers, which would reach other sessions. Where T is B nobody can tell.

    Args:
        tokens: T tokens for each row.
        row_count: B >= 1.

    Raises:
        TypeError: They are no tokens; see `holdfast.client.tokens.normalise`.
        ValueError: They are not as many for each row, not finite, or ids out of range.
    """
    if isinstance(tokens, str):
        raise TypeError("tokens are one str, expected bytes, or a str for each session")
    text = as_text(tokens)
    if text is None and _is_texts(tokens):
        text = _joined([as_text(row) or b"" for row in tokens], row_count)
    if text is not None:
        if not text or len(text) % row_count:
            raise ValueError(f"{len(text)} bytes for {row_count} sessions, expected as many for each")
        return text
    numbers = to_array(tokens, "tokens")
    if numbers.dtype.kind == "b":
        raise TypeError("tokens are bools, expected text, ids or features")
    is_ids = numbers.dtype.kind in "iu"
    axes = numbers.ndim if is_ids else numbers.ndim - 1
    if axes not in (1, 2) or len(numbers) != row_count or not numbers.size:
        name, width = ("ids", "") if is_ids else ("features", ", width")
        expected = f"({row_count}{width or ','}) or ({row_count}, T{width})"
        raise ValueError(f"{name} have the shape {numbers.shape}, expected {expected}")
    found: NDArray[Any] = to_ids(numbers) if is_ids else to_float32(numbers, "features")
    return found if axes == 2 else found[:, None]


def _is_texts(tokens: Any) -> bool:
    if not isinstance(tokens, list | tuple) or not tokens:
        return False
    return all(isinstance(row, str | bytes | bytearray) for row in tokens)


def _joined(texts: list[bytes], row_count: int) -> bytes:
    lengths = sorted({len(text) for text in texts})
    if len(texts) != row_count or len(lengths) != 1:
        raise ValueError(
            f"{len(texts)} texts of {', '.join(map(str, lengths))} bytes for {row_count} sessions, "
            "expected one for each, all as long"
        )
    return b"".join(texts)
