"""Nested values of tensors: their tensors in order, their names, and the same value around other tensors.

A value is a tensor, None, or a tuple, list, dict, NamedTuple or dataclass of values. A name is the way to a
tensor: keys, fields or numbers, joined by `_`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from model_export.export_error import ExportError


def tensors(value: Any, where: str) -> list[Tensor]:
    """Returns the tensors of a value.

    Args:
        value: Nested.
        where: What it is, for the message.

    Raises:
        ExportError: It holds something that is neither.
    """
    return [tensor for _, tensor in _leaves(value, where, ())]


def names(value: Any, where: str, alone: str) -> list[str]:
    """Returns the names of the tensors, each once.

    Args:
        value: Nested.
        where: What it is, for the message.
        alone: Name of a tensor that is the value itself, and the beginning of names that are numbers.

    Raises:
        ExportError: See `tensors`.
    """
    found: list[str] = []
    for path, _ in _leaves(value, where, ()):
        name = "_".join(path)
        if not name or name[0].isdigit():
            name = f"{alone}_{name}".rstrip("_")
        while name in found:
            name += "_"
        found.append(name)
    return found


def rebuilt(value: Any, given: Sequence[Tensor]) -> Any:
    """Returns the value with other tensors, in the order of `tensors`."""
    rest = iter(given)
    result = _rebuilt(value, rest)
    assert next(rest, None) is None, "bug: more tensors than the value holds"
    return result


def same_structure(left: Any, right: Any) -> bool:
    """Tells whether both hold tensors at the same names."""
    paths = [[path for path, _ in _leaves(value, "value", ())] for value in (left, right)]
    return paths[0] == paths[1]


def _leaves(value: Any, where: str, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, part in _parts(value, where, path):
        yield from _leaves(part, where, (*path, key))


def _parts(value: Any, where: str, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(number), part) for number, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    place = ".".join((where, *path))
    raise ExportError(
        f"{place} is {type(value).__name__} {value!r:.40}, expected a tensor, or a tuple, list, dict, "
        "NamedTuple or dataclass of tensors"
    )


def _rebuilt(value: Any, rest: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(rest)
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _rebuilt(part, rest) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuilt(part, rest) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(part, rest) for part in value)
    fields = dataclasses.fields(value)
    return dataclasses.replace(
        value, **{field.name: _rebuilt(getattr(value, field.name), rest) for field in fields}
    )
