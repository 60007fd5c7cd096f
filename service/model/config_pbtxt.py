"""Reads what a Triton `config.pbtxt` says of a stateful network, as a contract. Pure.

Triton's list of states is a contract's: names of input and output, extents, and what a session begins with.
With `max_batch_size` above 0 all tensors have their batch axis first. What Triton tells a graph by further
inputs (that a sequence starts, ends, or which one it is) no contract says: such a graph is refused.
"""

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from service.model.contract import ContractError
from service.model.text_proto import Message, TextProtoError, Word, parse

CONFIG_FILE = "config.pbtxt"
INITIAL_STATE_FOLDER = "initial_state"
"""Beside config.pbtxt: where Triton looks for what sessions begin with."""

_DTYPES = {
    "TYPE_BOOL": "?",
    "TYPE_UINT8": "<u1",
    "TYPE_INT8": "<i1",
    "TYPE_INT32": "<i4",
    "TYPE_INT64": "<i8",
    "TYPE_FP16": "<f2",
    "TYPE_FP32": "<f4",
    "TYPE_FP64": "<f8",
}

_REFUSED = {
    "ensemble_scheduling": "it joins several models; serve each by itself",
    "batch_input": "the graph would be told about the batch; export it without such inputs",
    "batch_output": "outputs would be cut by what is in the batch; export it without",
}

ReadFile = Callable[[str], bytes]
"""Name of a file, relative to config.pbtxt -> its content; raises OSError."""


class Config(NamedTuple):
    """What a config.pbtxt is as a contract.

    Attributes:
        document: The contract.
        files: The files that it names: initial states, as .npy.
    """

    document: dict[str, Any]
    files: dict[str, bytes]


def read_config(text: str, read_file: ReadFile) -> Config:
    """Returns the contract that a config.pbtxt is.

    Args:
        text: The file.
        read_file: Reads a file beside it: of initial states, and of labels.

    Raises:
        ContractError: It is not such a file, or says what no contract can.
    """
    try:
        files: dict[str, bytes] = {}
        return Config(_document(parse(text), read_file, files), files)
    except TextProtoError as error:
        raise _wrong(str(error)) from None


def _document(config: Message, read_file: ReadFile, files: dict[str, bytes]) -> dict[str, Any]:
    for field, reason in _REFUSED.items():
        if field in config:
            raise _wrong(f"{field}: {reason}")
    most_rows = _single(config, "max_batch_size", 0)
    if not isinstance(most_rows, int):
        raise _wrong(f"max_batch_size is {most_rows!r}, expected a number")
    leading = ["batch"] if most_rows > 0 else []
    sequences = _messages(config, "sequence_batching")
    for sequence in sequences:
        for control in _messages(sequence, "control_input"):
            raise _wrong(_control_reason(control))
    document: dict[str, Any] = {
        "input": [_tensor(entry, leading) for entry in _messages(config, "input")],
        "state": [
            _state(entry, leading, read_file, files)
            for sequence in sequences
            for entry in _messages(sequence, "state")
        ],
        "output": [
            _tensor(entry, leading) | _labels(entry, read_file) for entry in _messages(config, "output")
        ],
    }
    if most_rows > 0:
        document = {"rows_per_run": most_rows, **document}
    fed_back = {state["output"] for state in document["state"]}
    document["output"] = [entry for entry in document["output"] if entry["name"] not in fed_back]
    return {topic: value for topic, value in document.items() if value}


def _tensor(entry: Message, leading: list[str]) -> dict[str, Any]:
    reshaped = _messages(entry, "reshape")
    dims = _numbers(reshaped[0], "shape") if reshaped else _numbers(entry, "dims")
    return {"name": _text(entry, "name")} | _axes(dims, leading)


def _state(
    entry: Message, leading: list[str], read_file: ReadFile, files: dict[str, bytes]
) -> dict[str, Any]:
    names = {"input": _text(entry, "input_name"), "output": _text(entry, "output_name")}
    if _single(entry, "use_growable_memory", "false") == "true":
        raise _wrong(
            f"state {names['input']!r} grows (use_growable_memory); keep the last values in a ring buffer, "
            "and their count in a counter"
        )
    axes = _axes(_numbers(entry, "dims"), leading)
    initials = [
        _initial(initial, names["input"], read_file, files) for initial in _messages(entry, "initial_state")
    ]
    if len(initials) > 1:
        raise _wrong(f"state {names['input']!r} has {len(initials)} initial states, expected one")
    return names | axes | (initials[0] if initials else {})


def _initial(initial: Message, state: str, read_file: ReadFile, files: dict[str, bytes]) -> dict[str, Any]:
    if "data_file" not in initial:
        return {"initial": 0}
    name, dims = _text(initial, "data_file"), _numbers(initial, "dims")
    dtype = np.dtype(_dtype(initial))
    path = f"{INITIAL_STATE_FOLDER}/{name}"
    if "/" in name or name in (".", ".."):
        raise _wrong(
            f"state {state!r}: data_file {name!r} is not the name of a file in {INITIAL_STATE_FOLDER}"
        )
    try:
        data = read_file(path)
    except OSError as error:
        raise _wrong(f"state {state!r}: {path} cannot be read: {error.strerror or error}") from None
    expected = dtype.itemsize * math.prod(dims)
    if len(data) != expected or any(extent < 1 for extent in dims):
        raise _wrong(f"state {state!r}: {path} has {len(data)} bytes, {dtype.name} {dims} has {expected}")
    npy = io.BytesIO()
    np.save(npy, np.frombuffer(data, dtype).reshape(dims), allow_pickle=False)
    target = f"initial_state_{len(files)}.npy"
    files[target] = npy.getvalue()
    return {"initial": target}


def _labels(entry: Message, read_file: ReadFile) -> dict[str, Any]:
    if "label_filename" not in entry:
        return {}
    path = _text(entry, "label_filename")
    if path.startswith("/") or ".." in path.split("/"):
        raise _wrong(f"label_filename {path!r} is not beside it")
    try:
        return {"labels": read_file(path).decode().split("\n")[:-1]}
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{path} cannot be read: {error}") from None


def _control_reason(control: Message) -> str:
    kinds = [str(_single(inner, "kind", "")) for inner in _messages(control, "control")]
    return (
        f"the graph takes a control input {_text(control, 'name')!r} ({', '.join(kinds) or 'of no kind'}); "
        "here it is run for tokens of open sessions only, and new ones begin with their initial state: "
        "export the network without it"
    )


def _axes(dims: list[int], leading: list[str]) -> dict[str, Any]:
    """Returns axes if all extents are said; else the graph has to say them."""
    return {"axes": [*leading, *dims]} if all(extent > 0 for extent in dims) else {}


def _dtype(message: Message) -> str:
    name = str(_single(message, "data_type", ""))
    if name not in _DTYPES:
        raise _wrong(f"data_type {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _messages(message: Message, field: str) -> list[Message]:
    values = message.get(field, [])
    for value in values:
        if not isinstance(value, dict):
            raise _wrong(f"{field} is {value!r}, expected a message")
    return [value for value in values if isinstance(value, dict)]


def _numbers(message: Message, field: str) -> list[int]:
    values = message.get(field, [])
    if not all(isinstance(value, int) for value in values):
        raise _wrong(f"{field} is {values!r}, expected numbers")
    return [value for value in values if isinstance(value, int)]


def _text(message: Message, field: str) -> str:
    value = _single(message, field, b"")
    if not isinstance(value, bytes) or not value:
        raise _wrong(f"{field} is missing, or no text")
    return value.decode(errors="replace")


def _single(message: Message, field: str, default: Word) -> Word:
    """Returns a field's value, the last one as protobuf does."""
    return message.get(field, [default])[-1]


def _wrong(what: str) -> ContractError:
    return ContractError(f"{CONFIG_FILE}: {what}")
