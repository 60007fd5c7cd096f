"""What was taken from a caller and has no reply yet, and how to say so. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import to_elements

Tokens = bytes | NDArray[Any]
"""Normalised: text as bytes, ids as int64 (k,), features as float32 (k, width)."""


class PendingChunk(NamedTuple):
    """A chunk that was taken from the caller and whose reply the caller has not had.

    It was sent and may have been applied, or it was fetched from a source and not sent.

    Attributes:
        position: Tokens of the session before it.
        tokens: Its tokens: bytes, int64 ids (k,) or float32 features (k, width).
    """

    position: int
    tokens: Tokens


def describe(chunks: Sequence[PendingChunk]) -> str:
    """Says how many chunks and tokens these are and where they begin; there is at least one."""
    count = sum(len(chunk.tokens) for chunk in chunks)
    return f"{_some(len(chunks), 'chunk')} of {_some(count, 'token')} from position {chunks[0].position} on"


def are_same(one: Tokens, other: Tokens) -> bool:
    """Whether these are the same tokens; a byte and its id are the same."""
    if _width(one) != _width(other):
        return False
    return np.array_equal(_elements(one), _elements(other))


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _width(tokens: Tokens) -> int:
    """Returns the features per token; 0 for bytes and ids."""
    return 0 if isinstance(tokens, bytes) or tokens.ndim == 1 else int(tokens.shape[1])


def _elements(tokens: Tokens) -> NDArray[Any]:
    return np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else to_elements(tokens)
