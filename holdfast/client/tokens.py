"""Between what a caller has (text, ids, features, states) and the messages of the contract. Pure.

One integer is one token, and so is one row of floats. docs/guides/inputs.md has what is taken for what.
"""

import array
import numbers
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.client.arrays import to_array, to_float32, to_ids
from holdfast.client.options import selection, session_id_text, whole_number
from holdfast.v1 import holdfast_pb2 as pb

__all__ = [
    "Pieces", "SupportsArray", "TokenSource", "as_text", "is_whole", "normalise", "pieces", "selection",
    "session_id_text", "split", "state_message", "to_arrays", "to_message", "to_tensor",
]  # fmt: skip


class SupportsArray(Protocol):
    """Arrays, tensors and tables of other libraries."""

    def __array__(self) -> NDArray[Any]:
        """Returns its numbers."""


TokenSource = str | bytes | bytearray | memoryview | int | Sequence[Any] | NDArray[Any] | SupportsArray
"""Text, ids (k,), or features (k, width); one id, or one row of features."""

Pieces = TokenSource | Iterable[TokenSource] | AsyncIterable[TokenSource]
"""A run of tokens, or whatever gives one piece of it after the other."""

_DTYPES: dict[int, Any] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT8: np.dtype("i1"),
    pb.DATA_TYPE_BOOL: np.dtype("?"),
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
}
_NUMBERS: dict[Any, Any] = {dtype: number for number, dtype in _DTYPES.items()}


def normalise(tokens: TokenSource) -> bytes | NDArray[Any]:
    """Returns text as bytes, ids as int64 (k,), features as float32 (k, width); k >= 1.

    What comes back is the caller's no more: it is kept to be sent again, whatever he does to his array.

    Raises:
        TypeError: It is something else, or cannot be read as numbers.
        ValueError: It is empty, masked, of another number of axes, out of range or not finite.
    """
    found = tokens if type(tokens) is bytes else _read(tokens)
    if not len(found):
        raise ValueError("there are no tokens, expected at least one")
    return found


def _read(tokens: Any) -> bytes | NDArray[Any]:
    text = as_text(tokens)
    if text is not None:
        return text
    found = to_array(tokens, "tokens")
    if found.ndim == 1 and not found.size:
        return np.empty(0, np.int64)
    if found.dtype.kind == "b":
        raise TypeError("tokens are bools, expected text, ids or features")
    if found.dtype.kind in "iu":
        if found.ndim > 1:
            raise ValueError(f"ids have the shape {found.shape}, expected (k,); features are floats")
        return to_ids(found.reshape(-1))
    if found.ndim not in (1, 2) or found.shape[-1] == 0:
        raise ValueError(f"features have the shape {found.shape}, expected (width,) or (k, width)")
    return to_float32(found.reshape(-1, found.shape[-1]), "features")


def as_text(tokens: Any) -> bytes | None:
    """Returns text as bytes; None if it is none.

    Raises:
        ValueError: A str has half a character, a lone surrogate; or a view of bytes has several axes.
    """
    if isinstance(tokens, str):
        return tokens.encode()
    if isinstance(tokens, bytes | bytearray):
        return bytes(tokens)
    if isinstance(tokens, memoryview) and tokens.format in ("B", "c"):
        if tokens.ndim != 1:
            raise ValueError(f"text has the shape {tokens.shape}, expected (k,)")
        return bytes(tokens)
    return None


def split(tokens: TokenSource, size: int) -> Iterator[bytes | NDArray[Any]]:
    """Yields normalised pieces of at most `size` tokens; none for an empty run.

    Raises:
        TypeError, ValueError: As `normalise`; or `size` is no integer of at least 1.
    """
    yield from pieces(tokens, whole_number("chunk", size, at_least=1))


def pieces(tokens: TokenSource, size: int) -> list[bytes | NDArray[Any]]:
    """The same at once, for a size that was looked at."""
    whole = tokens if type(tokens) is bytes else _read(tokens)
    if 0 < len(whole) <= size:
        return [whole]
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def is_whole(tokens: Any) -> bool:
    """Whether it is one run of tokens, or what can only be refused, rather than an iterable of pieces."""
    if isinstance(
        tokens, str | bytes | bytearray | memoryview | range | array.array | Mapping | AbstractSet
    ):
        return True
    if any(hasattr(tokens, name) for name in ("dtype", "to_numpy", "__array__")):
        return True
    if isinstance(tokens, Sequence):
        return all(isinstance(token, numbers.Number) for token in tokens)
    return not isinstance(tokens, Iterable | AsyncIterable)


def to_message(tokens: bytes | NDArray[Any]) -> pb.Tokens:
    """Writes normalised tokens."""
    if isinstance(tokens, bytes):
        return pb.Tokens(text=tokens)
    if tokens.dtype == np.int64:
        return pb.Tokens(ids=pb.TokenIds(values=tokens.tolist()))
    return pb.Tokens(features=to_tensor(tokens))


def state_message(state: Mapping[str, Any] | None, *, row_count: int | None = None) -> list[pb.NamedTensor]:
    """Writes a state. Arrays keep their dtype, which must be the model's; floats of Python become float32.

    Args:
        state: By name.
        row_count: Sessions whose rows each value has; None for one session, without a row.

    Raises:
        TypeError: It is no mapping from names, or a value has no dtype that states can have.
        ValueError: A value is masked or out of range, or has another number of rows.
    """
    if state is None:
        return []
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f"initial_state is a {type(state).__name__}, expected arrays by name of the state")
    named = [pb.NamedTensor(name=name, tensor=_state_tensor(name, value)) for name, value in state.items()]
    for each in named if row_count is not None else ():
        shape = list(each.tensor.shape)
        if shape[:1] != [row_count]:
            raise ValueError(
                f"values of the state {each.name!r} have the shape {shape}, expected a row for each of "
                f"{row_count} sessions"
            )
    return named


def _state_tensor(name: str, value: Any) -> pb.Tensor:
    what = f"values of the state {name!r}"
    found = to_array(value, what)
    if (
        found.dtype.kind == "f"
        and isinstance(value, Sequence | float)
        and not isinstance(value, np.generic)
    ):
        found = to_float32(found, what)  # floats of Python say nothing of a dtype
    try:
        return to_tensor(found)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None


def to_tensor(values: NDArray[Any]) -> pb.Tensor:
    """Writes an array of any layout and byte order.

    Raises:
        TypeError: The contract has no such dtype.
    """
    little = values.dtype.newbyteorder("<")
    if little not in _NUMBERS:
        names = ", ".join(dtype.name for dtype in _NUMBERS)
        raise TypeError(f"the dtype is {values.dtype}, expected one of {names}")
    return pb.Tensor(
        dtype=_NUMBERS[little], shape=values.shape, data=values.astype(little, copy=False).tobytes()
    )


def to_arrays(tensors: Iterable[pb.NamedTensor]) -> dict[str, NDArray[Any]]:
    """Reads named tensors."""
    return {
        named.name: np.frombuffer(named.tensor.data, _DTYPES[named.tensor.dtype]).reshape(
            tuple(named.tensor.shape)
        )
        for named in tensors
    }
