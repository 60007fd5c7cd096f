"""Between what a caller has (text, ids, features, arrays) and the messages of the contract. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.v1 import holdfast_pb2 as pb

TokenSource = str | bytes | Sequence[int] | NDArray[Any]
"""Text, ids, or float32 features (k, width)."""

_DTYPES: dict[int, Any] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT8: np.dtype("i1"),
    pb.DATA_TYPE_BOOL: np.dtype("?"),
}
_NUMBERS: dict[Any, Any] = {dtype: number for number, dtype in _DTYPES.items()}


def normalise(tokens: TokenSource) -> bytes | NDArray[Any]:
    """Returns text as bytes, ids as int64 (k,), features as float32 (k, width).

    Raises:
        TypeError: Something else, or features that are not float32.
        ValueError: An array of another number of axes.
    """
    if isinstance(tokens, str):
        return tokens.encode()
    if isinstance(tokens, bytes | bytearray | memoryview):
        return bytes(tokens)
    array = np.asarray(tokens)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.integer):
        if array.ndim != 1:
            raise ValueError(f"ids have {array.ndim} axes, expected 1")
        return array.astype(np.int64)
    if array.dtype != np.float32:
        raise TypeError(f"tokens are {array.dtype}, expected str, bytes, integers or float32 features")
    if array.ndim != 2:
        raise ValueError(f"features have {array.ndim} axes, expected 2: (tokens, width)")
    return array


def to_message(tokens: bytes | NDArray[Any]) -> pb.Tokens:
    """Writes normalised tokens."""
    if isinstance(tokens, bytes):
        return pb.Tokens(text=tokens)
    if tokens.dtype == np.int64:
        return pb.Tokens(ids=pb.TokenIds(values=tokens.tolist()))
    return pb.Tokens(features=to_tensor(tokens))


def split(tokens: TokenSource, size: int) -> Iterator[bytes | NDArray[Any]]:
    """Yields normalised pieces of at most `size` tokens."""
    whole = normalise(tokens)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def to_tensor(array: NDArray[Any]) -> pb.Tensor:
    """Writes an array."""
    return pb.Tensor(dtype=_NUMBERS[array.dtype], shape=array.shape, data=array.tobytes())


def to_arrays(tensors: Iterable[pb.NamedTensor]) -> dict[str, NDArray[Any]]:
    """Reads named tensors."""
    return {
        named.name: np.frombuffer(named.tensor.data, _DTYPES[named.tensor.dtype]).reshape(
            tuple(named.tensor.shape)
        )
        for named in tensors
    }


def selection(
    top_k: int | None, token_log_prob: bool, outputs: bool | Sequence[str] | None, state: bool
) -> pb.OutputSelection | None:
    """Writes what a reply should hold; None leaves it to the server."""
    if top_k is None and not (token_log_prob or outputs or state):
        return None
    names = ["*"] if outputs is True else list(outputs or ())
    return pb.OutputSelection(top_k=top_k or 0, token_log_prob=token_log_prob, tensors=names, state=state)
