"""What holds numbers (lists, buffers, arrays, tensors, tables of other libraries) as a plain numpy array.

numpy alone would drop a mask or make floats of integers of two kinds, in silence; here what would lose
something is refused. Other libraries are recognised, never imported: a client need not have them. Pure.
"""

import array
from collections.abc import AsyncIterable, Awaitable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ID = 2**31 - 1
"""Ids are int32 on the wire."""

_KINDS = {
    "U": "text", "S": "text", "M": "times", "m": "times", "c": "complex numbers", "V": "records",
    "b": "bools", "O": "objects",
}  # fmt: skip


def to_array(value: Any, what: str) -> NDArray[Any]:
    """Returns the numbers that a value holds, whatever holds them.

    Args:
        value: A number; a sequence, nested to any depth; a buffer, a numpy array; something with
            `to_numpy` or `__array__`, as tables and arrays of other libraries have it; a tensor of torch on
            the CPU.
        what: Its name in errors, in the plural.

    Returns:
        Bools, integers or floats, in any byte order and layout; perhaps a view of what was passed.

    Raises:
        TypeError: It holds something else, or numbers that cannot be reached.
        ValueError: Something in it is masked or too large, or its parts are of unequal length.
    """
    found = _read(value, what)
    if found.dtype.kind == "O" and found.ndim:
        found = _from_items(found.tolist(), what)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"{what} are {_KINDS.get(found.dtype.kind)} ({found.dtype}), expected numbers")
    return found


def to_ids(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Returns integers of any kind as ids, in memory of their own.

    Raises:
        ValueError: One is negative or beyond int32.
    """
    wrong = np.argwhere((numbers < 0) | (numbers > MAX_ID))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"id {numbers[place]} at {_shown(place)} is not within 0..{MAX_ID}")
    return numbers.astype(np.int64, order="C")


def to_float32(numbers: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Returns floats of any kind, rounded to float32, in memory of their own.

    Raises:
        ValueError: One is NaN or infinite, or is so as float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = numbers.astype(np.float32, order="C")
    wrong = np.argwhere(~np.isfinite(rounded))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{what} have {numbers[place]} at {_shown(place)}, expected finite float32")
    return rounded


def _shown(place: tuple[int, ...]) -> str:
    return str(list(place)) if len(place) != 1 else str(place[0])


def _read(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(value, what)
    if isinstance(value, np.ndarray | np.generic | bool | float):
        return np.asarray(value)
    if isinstance(value, int):
        return _from_items([int(value)], what).reshape(())
    if is_of_torch(value):
        return _from_torch(value, what)
    if isinstance(value, Sequence) and not isinstance(
        value, str | bytes | bytearray | memoryview | range | array.array
    ):
        return _from_items(list(value), what)
    reason = _why_not(value)
    if reason:
        raise TypeError(f"{what} are {reason}")
    try:
        found = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    except Exception as error:  # each library raises classes of its own
        raise TypeError(f"{what} are a {_name(value)}, which gives no numbers: {error}") from error
    if isinstance(found, np.ma.MaskedArray):
        return _unmasked(found, what)
    if not isinstance(found, np.ndarray) or (found.dtype.kind == "O" and not found.ndim):
        raise TypeError(f"{what} are a {_name(value)}, expected numbers")
    return found


def _unmasked(masked: Any, what: str) -> NDArray[Any]:
    count = int(np.ma.getmaskarray(masked).sum())
    if count:
        raise ValueError(f"{what} are masked in {count} places: fill these, or leave them out")
    return np.asarray(np.ma.getdata(masked))


def _from_items(items: list[Any], what: str) -> NDArray[Any]:
    """Joins numbers, or parts of equal shape, along a new first axis."""
    types = set(map(type, items))
    if types <= {int, float}:
        kind = np.int64 if types <= {int} else np.float64
        try:
            return np.array(items, kind)
        except OverflowError:
            raise ValueError(f"{what} have {max(items, key=abs)}, which 64 bits do not hold") from None
    parts = [to_array(item, what) for item in items]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"{what} have parts of unequal shape: {', '.join(map(str, sorted(shapes)))}")
    kinds = {part.dtype.kind for part in parts}
    if "b" in kinds and len(kinds) > 1:
        raise TypeError(f"{what} have bools among numbers")
    if kinds <= {"i", "u"}:  # joined as they are, uint64 and int64 would become float64
        parts = [_to_int64(part, what) for part in parts]
    return np.stack(parts)


def _to_int64(part: NDArray[Any], what: str) -> NDArray[np.int64]:
    if part.size and part.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what} have {part.max()}, which int64 does not hold")
    return part.astype(np.int64)


def is_of_torch(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return hasattr(value, "detach") and any(
        kind.__module__.partition(".")[0] == "torch" for kind in type(value).__mro__
    )


def _from_torch(tensor: Any, what: str) -> NDArray[Any]:
    """Reads a tensor without its gradient; one that lies elsewhere is for the caller to fetch."""
    if tensor.device.type != "cpu":
        raise TypeError(f"{what} are a tensor on {tensor.device}, expected one on the CPU: tensor.cpu()")
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has none; float32 holds all of its values
        tensor = tensor.float()
    try:
        found: NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{what} are a tensor that gives no numbers: {error}") from error
    return found


def _why_not(value: Any) -> str:
    """Says why something holds no run of numbers, and what would; "" if it might."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes | bytearray):
        return "text, expected numbers"
    if isinstance(value, Mapping):
        return f"a {_name(value)}, expected its values in an order: list(….values())"
    if isinstance(value, AbstractSet):
        return f"a {_name(value)}, which has no order"
    if isinstance(value, Iterator | AsyncIterable | Awaitable):
        return f"a {_name(value)}: stream() takes it, or make it a list"
    return ""


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
