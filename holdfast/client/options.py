"""What callers choose beside tokens: session ids, positions, outputs, sizes, times. Pure.

Python takes a str for a list of letters and True for 1; here what is not meant is refused.
"""

import enum
import math
import numbers
import operator
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypedDict

import numpy as np

from holdfast.client.arrays import to_array
from holdfast.v1 import holdfast_pb2 as pb

SessionId = str | int | uuid.UUID
"""How a session may be named; 7 is the session "7"."""


class NewId(enum.Enum):
    """Stands for an id that is left out; "" does not, since it is more often an id that got lost."""

    FROM_SERVER = enum.auto()


Outputs = bool | str | Iterable[str] | None
"""Output tensors: one name, several, True for all."""


class OpenBatchOptions(TypedDict, total=False):
    """How sessions may be opened together; see `AsyncClient.open_batch`."""

    version: int
    must_be_new: bool
    initial_state: Mapping[str, Any] | None


class OpenOptions(OpenBatchOptions, total=False):
    """How a session may be opened; see `AsyncClient.open_session`."""

    model: str
    take_over: bool


class BatchOptions(TypedDict, total=False):
    """What may be asked of a batch, as of a step; `version` as by `AsyncClient.open_batch`."""

    version: int
    top_k: int | None
    token_log_prob: bool
    outputs: Outputs
    ack_level: str | None


class StepBatchOptions(BatchOptions, total=False):
    """What may be asked of one batch that is waited for."""

    cursors: Sequence[bytes | None] | None
    timeout_s: float | None


class ReplyOptions(TypedDict, total=False):
    """What the reply to a step, or to each chunk of a stream, should be; see `AsyncSession.step`."""

    top_k: int | None
    token_log_prob: bool
    outputs: Outputs
    state: bool
    ack_level: str | None


class StepOptions(ReplyOptions, total=False):
    """What may be asked of a step, and of each chunk of a stream."""

    timeout_s: float | None


MAX_INT32 = 2**31 - 1
MAX_POSITION = 2**53 - 1
MAX_CURSOR_BYTES = 256


def session_id_text(value: Any) -> str:
    """Returns a session's id as the contract has it.

    Raises:
        TypeError: It is no str, integer or UUID. Bytes say no encoding; for None a server would make an id.
        ValueError: It has half a character, a lone surrogate.
    """
    if isinstance(value, str):
        text = str.__str__(value)  # of an enum's member the value, not its name
        text.encode()
        return text
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, numbers.Integral) and value is not True and value is not False:
        return str(operator.index(value))
    hint = ": decode it" if isinstance(value, bytes | bytearray) else ""
    raise TypeError(f"a session id is {value!r:.80}, expected str, int or UUID{hint}")


def session_ids_text(values: Any) -> list[str]:
    """Returns the ids of a batch, in order.

    Raises:
        TypeError: They are one str, have no order or more than one axis, or one of them is no id.
        ValueError: There is none.
    """
    is_run = isinstance(values, Iterable) and not isinstance(values, Mapping | AbstractSet)
    if isinstance(values, str | bytes | bytearray) or not is_run:
        raise TypeError(f"session_ids are a {type(values).__name__}, expected a list of ids")
    shape = tuple(getattr(values, "shape", (0,)))
    if len(shape) != 1:  # a table would give the names of its columns
        raise TypeError(f"session_ids have the shape {shape}, expected (B,)")
    listed = list(values)
    texts = listed if set(map(type, listed)) == {str} else [session_id_text(value) for value in listed]
    if not texts:
        raise ValueError("there are no session_ids, expected at least one")
    return texts


def positions_list(positions: Any, row_count: int) -> list[int] | None:
    """Returns the positions of a batch; None for None, which appends. An empty list is not None.

    Raises:
        TypeError: They are not integers.
        ValueError: They are not one for each row, or one is not within 0..2^53 - 1.
    """
    if positions is None:
        return None
    found = to_array(positions, "positions")
    if found.shape != (row_count,):
        raise ValueError(f"positions have the shape {found.shape}, expected ({row_count},)")
    if found.dtype.kind not in "iu":
        raise TypeError(f"positions are {found.dtype}, expected integers")
    if found.min() < 0 or found.max() > MAX_POSITION:
        raise ValueError(f"positions are {found.min()}..{found.max()}, expected 0..{MAX_POSITION}")
    listed: list[int] = found.tolist()
    return listed


def selection(
    top_k: int | None, token_log_prob: bool, outputs: Outputs, state: bool
) -> pb.OutputSelection | None:
    """Writes what a reply should hold; None leaves it to the server.

    Raises:
        TypeError: `top_k` is no integer, an output no name, or a switch neither True nor False.
        ValueError: `top_k` is negative or beyond int32.
    """
    count = None if top_k is None else whole_number("top_k", top_k, at_least=0)
    names = _names(outputs)
    log_prob, with_state = flag("token_log_prob", token_log_prob), flag("state", state)
    if count is None and not (log_prob or names or with_state):
        return None
    return pb.OutputSelection(top_k=count or 0, token_log_prob=log_prob, tensors=names, state=with_state)


def _names(outputs: Outputs) -> Sequence[str]:
    if outputs is None or isinstance(outputs, bool | np.bool_):
        return ["*"] if outputs else []
    if isinstance(outputs, str):
        return [str(outputs)]
    if isinstance(outputs, bytes | Mapping) or not isinstance(outputs, Iterable):
        raise TypeError(f"outputs is {outputs!r:.80}, expected names of outputs, or True for all")
    names = list(outputs)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"outputs has {name!r:.80}, expected names of outputs")
    return sorted(names) if isinstance(outputs, AbstractSet) else names


def argument_of(field: str) -> str:
    """Returns which argument of a step a field of its request was written from; another field as it is.

    Args:
        field: As `HoldfastError.field` has it, in a chunk or relative to one.
    """
    parts = field.removeprefix("chunk.").split(".")
    if parts[0] == "outputs":
        name = parts[-1]
        return name if name in ("top_k", "token_log_prob", "state") else "outputs"
    return parts[0] if parts[0] in ("tokens", "position", "cursor", "ack_level") else field


def cursor_bytes(value: Any) -> bytes:
    """Returns a cursor as the contract has it; None is none.

    Raises:
        TypeError: It is no bytes.
        ValueError: It is empty, or too long.
    """
    if value is None:
        return b""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"a cursor is {value!r:.80}, expected bytes")
    found = bytes(value)
    if not 1 <= len(found) <= MAX_CURSOR_BYTES:
        raise ValueError(f"a cursor has {len(found)} bytes, expected 1..{MAX_CURSOR_BYTES}")
    return found


def cursors_bytes(values: Any, row_count: int) -> list[bytes]:
    """Returns the cursors of a batch; none for None.

    Raises:
        TypeError: One is neither bytes nor None.
        ValueError: It is not one for each row, or one is empty or too long.
    """
    if values is None:
        return []
    found = [cursor_bytes(value) for value in values]
    if len(found) != row_count:
        raise ValueError(f"there are {len(found)} cursors, expected {row_count}: one for each session")
    return found


def flag(name: str, value: Any) -> bool:
    """Returns a switch.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r:.80}, expected True or False")
    return bool(value)


def whole_number(name: str, value: Any, *, at_least: int, at_most: int = MAX_INT32) -> int:
    """Returns a number of things.

    Raises:
        TypeError: It is no integer; True and 2.0 are none.
        ValueError: It is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r:.80}, expected an integer")
    if not at_least <= number <= at_most:
        expected = f"at least {at_least}" if number < at_least else f"at most {at_most}"
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number


def real_number(name: str, value: Any) -> float:
    """Returns a number, whatever it is.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r:.80}, expected a number")
    return float(value)


def seconds(name: str, value: Any) -> float:
    """Returns a time limit.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or NaN.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r:.80}, expected seconds")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} is {value}, expected seconds, at least 0")
    return float(value)
