"""Reads the single values of a contract's tables; what is wrong is said with its place. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from service.model.contract import (
    DTYPES,
    RANKED,
    Context,
    ContractError,
    GraphTensor,
    Layout,
    TokenizerFile,
    Vocabulary,
)
from service.model.document import Document, check_known

MAX_EXACT_ID = 1 << 24
"""Ids among features travel as float32, which has all integers below this."""

Tensors = Mapping[str, GraphTensor]


class Tensor(NamedTuple):
    """A tensor of the graph as a contract has it.

    Attributes:
        dtype: Element type.
        rest: Its extents without time and batch.
        layout: Where these two stand.
    """

    dtype: np.dtype[Any]
    rest: tuple[int, ...]
    layout: Layout


def find_tensor(where: str, tensors: Tensors, name: str) -> GraphTensor:
    """Returns a tensor of the graph; `where` has its name.

    Raises:
        ContractError: The graph has none of this name.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise ContractError(
            f"{where} is not in the graph, which has {', '.join(sorted(tensors)) or 'none'}"
        )
    return tensor


def dtype_of(where: str, tensor: GraphTensor, entry: Mapping[str, Any]) -> np.dtype[Any]:
    """Returns the element type that the graph has, and the contract must not contradict.

    Raises:
        ContractError: It is one that nobody sends or keeps, or the contract says another.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ContractError(f"{where} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    said = entry.get("dtype", tensor.dtype)
    check_known(str(said), DTYPES, f"{where} is {tensor.dtype}; its dtype in the contract")
    if said != tensor.dtype:
        raise ContractError(f"{where} is {tensor.dtype}, the contract says {said}")
    return dtype


def axes_of(where: str, entry: Document) -> list[int | str]:
    """Returns the axes of a table.

    Raises:
        ContractError: They are none, or name batch or time twice.
    """
    axes = entry.get("axes")
    if not isinstance(axes, list):
        raise ContractError(f'{where}: axes are {axes!r}, expected a list such as ["batch", 128]')
    for axis in axes:
        if axis not in ("batch", "time") and not (type(axis) is int and axis >= 1):
            low = "is below 1" if type(axis) is int else 'is none: a number, "batch" or "time"'
            raise ContractError(f"{where}: the axis {str(axis)[:40]!r} {low}")
    for axis in ("batch", "time"):
        if axes.count(axis) > 1:
            raise ContractError(f"{where}: its axes name {axis} twice")
    return axes


def kind_of(where: str, entry: Document, dtype: np.dtype[Any]) -> str:
    """Returns `token_id` or `features`: what the table says, or what its element type suggests.

    Raises:
        ContractError: It is neither, or ids are no integers.
    """
    usual = "token_id" if dtype.kind == "i" and dtype.itemsize >= 4 else "features"
    kind: str = one_of(f"{where}: kind", entry.get("kind", usual), ("token_id", "features"))
    if kind == "token_id" and dtype.kind != "i":
        raise ContractError(f"{where}: a token_id is int32 or int64, the graph has {dtype.name}")
    return kind


def id_count_of(where: str, entry: Document) -> int:
    """Returns how many ids an input has that is one of several.

    Raises:
        ContractError: The table does not say, or more than float32 can tell apart.
    """
    size = entry.get("size")
    if type(size) is not int or not 1 <= size <= MAX_EXACT_ID:
        raise ContractError(
            f"{where}: size is {size!r}, expected the number of ids, 1..{MAX_EXACT_ID}, as it is one of "
            "several inputs"
        )
    return size


def without_context(
    where: str, entry: Document, name: str, rest: tuple[int, ...]
) -> tuple[tuple[int, ...], Context | None]:
    """Returns the extents of a token's own values, and what is put before them."""
    kept = entry.get("context", 0)
    if type(kept) is not int or kept < 0:
        raise ContractError(f"{where}: context is {kept!r}, expected a number >= 0")
    new = entry.get("token")
    if new is None:
        if kept:
            raise ContractError(f"{where}: it has context but no token, the number of new values per token")
        return rest, None
    if type(new) is not int or new < 1:
        raise ContractError(f"{where}: token is {new!r}, expected a number >= 1")
    fitting = [axis for axis, extent in enumerate(rest) if extent == new + kept]
    if not fitting:
        raise ContractError(
            f"{where}: token {new} and context {kept} make {new + kept}, no axis of {list(rest)} has that"
        )
    if kept and len(fitting) > 1:
        raise ContractError(
            f"{where}: axes {fitting} of a token {list(rest)} have {new + kept} values each: along which "
            "its windows go on is not told; take token and context out, and send whole windows"
        )
    axis = fitting[-1]
    shape = (*rest[:axis], new, *rest[axis + 1 :])
    return shape, Context(f"{name}.context", axis, kept) if kept else None


def tokenizer_of(entry: Document) -> TokenizerFile:
    """Returns what a vocabulary says of its tokenizer.

    Raises:
        ContractError: It names no file, or no hash of one.
    """
    name, sha256, start = entry.get("file"), entry.get("sha256"), entry.get("start")
    if name is None:
        raise ContractError(
            'vocabulary: a tokenizer needs file = "tokenizer.json", which lies beside contract.toml'
        )
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ContractError(
            f"vocabulary: sha256 is {str(sha256)[:70]!r}, expected what sha256sum says of {name}"
        )
    if start is not None and not (type(start) is int and start >= 0):
        raise ContractError(f"vocabulary: start is {start!r}, expected an id, or none")
    return TokenizerFile(name, sha256, start)


def labels_of(where: str, entry: Document) -> tuple[str, ...]:
    """Returns the labels of an output, () if it has none.

    Raises:
        ContractError: They are no list of names.
    """
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ContractError(f"{where}: labels are {str(labels)[:40]!r}, expected a list of names")
    return tuple(labels)


def check_role(
    where: str, role: str, tensor: Tensor, labels: tuple[str, ...], vocabulary: Vocabulary | None
) -> None:
    """Checks that an output can have its role.

    Raises:
        ContractError: It has another number of values than there are classes, or no floats.
    """
    count = math.prod(tensor.rest)
    if labels and len(labels) != count:
        raise ContractError(f"{where} has {count} values per token and {len(labels)} labels")
    if role in RANKED:
        wanted = len(labels) or (vocabulary.size if vocabulary is not None else 0)
        if not wanted:
            raise ContractError(f"{where}: {role} needs labels, or a vocabulary, to be over")
        if count != wanted:
            raise ContractError(f"{where}: {role} need one value per token id, {wanted}; it has {count}")
        if tensor.dtype.kind != "f":
            raise ContractError(
                f"{where}: {role} is {tensor.dtype.name}, expected float32, float16 or float64"
            )
    if role == "token_log_prob" and tensor.rest != ():
        raise ContractError(f"{where}: token_log_prob must be a scalar per token, it is {tensor.rest}")


class ForPeople(TypedDict):
    """Arguments of a spec."""

    units: str
    description: str


def for_people(entry: Document) -> ForPeople:
    """Returns what a table says for people."""
    return {
        "units": text_of(entry, "units", "units"),
        "description": text_of(entry, "description", "description"),
    }


def text_of(entry: Document, key: str, where: str) -> str:
    """Returns a text of a table, "" if there is none.

    Raises:
        ContractError: It is no text.
    """
    text = entry.get(key, "")
    if not isinstance(text, str):
        raise ContractError(f"{where} is {str(text)[:40]!r}, expected text")
    return text


def one_of(where: str, value: Any, choices: Sequence[str]) -> Any:
    """Returns a value that is one of the choices.

    Raises:
        ContractError: It is not.
    """
    if value not in choices:
        raise ContractError(f"{where} is {str(value)[:40]!r}, expected one of {', '.join(choices)}")
    return value


def check_distinct(what: str, names: list[str]) -> None:
    """Checks that no name is there twice.

    Raises:
        ContractError: One is.
    """
    for name in names:
        if names.count(name) > 1:
            raise ContractError(f"{what} {name!r} is named twice")


def shown(shape: Sequence[int | str | None]) -> str:
    """Returns the extents of a graph's tensor for a message."""
    return "[" + ", ".join("?" if extent in (None, "") else str(extent) for extent in shape) + "]"
