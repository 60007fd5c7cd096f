"""What a step graph promises about its tensors, read from the graph's own metadata.

A step graph takes tokens and the state of B sessions and gives outputs and the next state: one token each,
or T each if the graph has a time axis. ONNX says nothing of which input belongs to which output, so the
exporter writes it down in `metadata_props`, one JSON text per topic:

    holdfast.contract_version  1
    holdfast.input             {"name", "kind": "token_id" | "features", "dtype", "width", "time_axis"}
    holdfast.states            [{"name", "input", "output", "dtype", "shape", "batch_axis", "initial"}]
    holdfast.outputs           [{"name", "dtype", "shape", "role", "switch"}], the role one of "logits",
                               "token_log_prob" and "raw"
    holdfast.vocabulary        {"kind": "bytes" | "ids", "size"}; absent for features
    holdfast.apart             a list of "rows" and "tokens": what the graph would mix, so that it gets one
                               session, or one token, at a time; absent if it mixes neither

Shapes are without time and batch axis. With `"time_axis": true` (default false) the input and all outputs,
but not the states, have a time axis before their batch axis. An output may name as its `"switch"` a bool
input with a default: fed with false, the graph saves the work for this output. Other topics are facts for
people and passed on as they are. All topics have at most `MAX_TEXT_BYTES`, since every list of models has
them. Pure.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from service.model.apart import PARTS
from service.names import control_character

PREFIX = "holdfast."
VERSION = "1"
MAX_NAME_CHARS = 256
MAX_TEXT_BYTES = 64 << 10
"""A contract of a hundred states has 12 KiB."""

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int8": np.dtype("i1"),
    "bool": np.dtype("?"),
}


class ContractError(Exception):
    """A graph does not say, or not rightly, what its tensors are; the message names the place.

    Attributes:
        proposal: A contract.toml to begin with; "" if nothing can be proposed.
    """

    def __init__(self, message: str, proposal: str = "") -> None:
        super().__init__(message)
        self.proposal = proposal


@dataclass(frozen=True)
class InputSpec:
    """The token.

    Attributes:
        name: Graph input.
        kind: Ids of a vocabulary, shape ([T,] B), or features, shape ([T,] B, width).
        dtype: int64 for ids, float32 for features.
        width: Features per token; 1 for ids.
        has_time_axis: The graph takes T tokens of each session at once.
    """

    name: str
    kind: Literal["token_id", "features"]
    dtype: np.dtype[Any]
    width: int
    has_time_axis: bool = False


@dataclass(frozen=True)
class StateSpec:
    """One recurrent tensor.

    Attributes:
        name: What clients call it.
        input: Graph input that takes it.
        output: Graph output that gives its successor.
        dtype: Element type.
        shape: Extents without the batch axis.
        batch_axis: Where the batch axis goes in the graph's tensors.
    """

    name: str
    input: str
    output: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one session's tensor."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor.

    Attributes:
        name: Graph output.
        dtype: Element type.
        shape: Extents per token, without time and batch axis.
        role: `logits` over the vocabulary, `token_log_prob` of the arriving token, or `raw`.
        switch: Input that spares the graph this output when it is false; None without one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    role: Literal["logits", "token_log_prob", "raw"]
    switch: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes per token."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Vocabulary:
    """The ids a model knows: 0 .. size - 1; with kind `bytes` an id is a byte's value."""

    kind: Literal["bytes", "ids"]
    size: int


@dataclass(frozen=True, eq=False)
class Contract:
    """All that the service knows of a graph. Equal to itself only, so that it can be a key.

    Attributes:
        input: The token.
        states: Its recurrent tensors, one at least.
        outputs: What it gives per token.
        vocabulary: Of ids; None for features.
        facts: For people, by topic.
        text_bytes: Size of the texts it was read from.
    """

    input: InputSpec
    states: tuple[StateSpec, ...]
    outputs: tuple[OutputSpec, ...]
    vocabulary: Vocabulary | None = None
    apart: frozenset[str] = frozenset()
    facts: Mapping[str, str] = field(default_factory=dict)
    text_bytes: int = 0

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one session's state: all tensors one after the other."""
        return sum(state.size_bytes for state in self.states)

    @cached_property
    def logits(self) -> OutputSpec | None:
        """The output from which next tokens are ranked."""
        return self._output_of_role("logits")

    @cached_property
    def token_log_prob(self) -> OutputSpec | None:
        """The output that gives the log-probability of the arriving token."""
        return self._output_of_role("token_log_prob")

    def _output_of_role(self, role: str) -> OutputSpec | None:
        return next((output for output in self.outputs if output.role == role), None)


@dataclass(frozen=True)
class GraphTensor:
    """A tensor as the graph declares it: an extent is an int, the name of an axis, or None."""

    dtype: str
    shape: tuple[int | str | None, ...]


def read_contract(
    metadata: Mapping[str, str],
    inputs: Mapping[str, GraphTensor],
    outputs: Mapping[str, GraphTensor],
    switches: Mapping[str, GraphTensor] | None = None,
) -> Contract:
    """Reads a graph's contract and checks it against the graph.

    Args:
        metadata: The graph's `metadata_props`.
        inputs: Its inputs by name.
        outputs: Its outputs by name.
        switches: Its inputs with a default, by name.

    Raises:
        ContractError: The contract is missing, malformed, or not what the graph has.
    """
    version = metadata.get(PREFIX + "contract_version")
    if version is None:
        raise ContractError(
            f"metadata has no {PREFIX}contract_version, so nothing says which input and output are "
            "the state; export it with model_export"
        )
    if version != VERSION:
        raise ContractError(f"{PREFIX}contract_version is {version!r}, this server reads {VERSION!r}")
    text_bytes = _text_bytes(metadata)
    if text_bytes > MAX_TEXT_BYTES:
        raise ContractError(
            f"its metadata under {PREFIX} has {text_bytes} bytes, expected are at most {MAX_TEXT_BYTES}; "
            "keep long facts elsewhere"
        )
    try:
        contract = _parse(metadata)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ContractError(f"metadata cannot be read: {type(error).__name__}: {error}") from None
    _check_values(contract)
    _check_graph(contract, inputs, outputs)
    for output in contract.outputs:
        if output.switch is not None:
            _check_tensor("switch", output.switch, switches or {}, DTYPES["bool"], ())
    return contract


def _text_bytes(metadata: Mapping[str, str]) -> int:
    texts = ((key, value) for key, value in metadata.items() if key.startswith(PREFIX))
    return sum(len(text.encode(errors="replace")) for entry in texts for text in entry)


def _parse(metadata: Mapping[str, str]) -> Contract:
    def topic(name: str) -> Any:
        return json.loads(metadata[PREFIX + name])

    known = {"contract_version", "input", "states", "outputs", "vocabulary", "apart"}
    names = {key.removeprefix(PREFIX) for key in metadata if key.startswith(PREFIX)}
    return Contract(
        input=_parse_input(topic("input")),
        states=tuple(_parse_state(entry) for entry in topic("states")),
        outputs=tuple(_parse_output(entry) for entry in topic("outputs")),
        vocabulary=_parse_vocabulary(topic("vocabulary")) if "vocabulary" in names else None,
        apart=_parse_apart(topic("apart")) if "apart" in names else frozenset(),
        facts={_parse_name(name): metadata[PREFIX + name] for name in sorted(names - known)},
        text_bytes=_text_bytes(metadata),
    )


def _parse_input(entry: dict[str, Any]) -> InputSpec:
    kind = _one_of(entry["kind"], "token_id", "features")
    return InputSpec(
        name=_parse_name(entry["name"]),
        kind=kind,
        dtype=DTYPES[entry["dtype"]],
        width=int(entry["width"]),
        has_time_axis=_one_of(entry.get("time_axis", False), True, False),
    )


def _parse_state(entry: dict[str, Any]) -> StateSpec:
    _one_of(entry.get("initial", "zeros"), "zeros")
    return StateSpec(
        name=_parse_name(entry["name"]),
        input=_parse_name(entry["input"]),
        output=_parse_name(entry["output"]),
        dtype=DTYPES[entry["dtype"]],
        shape=_parse_shape(entry["shape"]),
        batch_axis=int(entry["batch_axis"]),
    )


def _parse_output(entry: dict[str, Any]) -> OutputSpec:
    role = _one_of(entry["role"], "logits", "token_log_prob", "raw")
    shape = _parse_shape(entry["shape"])
    switch = entry.get("switch")
    return OutputSpec(
        name=_parse_name(entry["name"]),
        dtype=DTYPES[entry["dtype"]],
        shape=shape,
        role=role,
        switch=None if switch is None else _parse_name(switch),
    )


def _parse_vocabulary(entry: dict[str, Any]) -> Vocabulary:
    return Vocabulary(_one_of(entry["kind"], "bytes", "ids"), int(entry["size"]))


def _parse_apart(parts: Any) -> frozenset[str]:
    if not isinstance(parts, list):
        raise TypeError(f"apart is no list of {' and '.join(PARTS)}")
    return frozenset(_one_of(part, *PARTS) for part in parts)


def _parse_name(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARS or control_character(value):
        raise ValueError(f"{str(value)[:40]!r} is no name: 1..{MAX_NAME_CHARS} characters, none a control")
    return value


def _parse_shape(extents: list[Any]) -> tuple[int, ...]:
    shape = tuple(int(extent) for extent in extents)
    if any(extent < 1 for extent in shape):
        raise ValueError(f"shape {list(shape)} has an extent below 1")
    return shape


def _one_of(value: Any, *choices: str | bool) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}")
    return value


def _check_values(contract: Contract) -> None:
    if not contract.states:
        raise ContractError("holdfast.states is empty: a step graph has at least one state pair")
    _check_distinct("state", [state.name for state in contract.states])
    _check_distinct("input", [contract.input.name, *(state.input for state in contract.states)])
    _check_distinct("next state", [state.output for state in contract.states])
    _check_distinct("output", [output.name for output in contract.outputs])
    if contract.vocabulary is not None:
        _check_vocabulary(contract.vocabulary)
    takes_ids = contract.input.kind == "token_id"
    if takes_ids and contract.vocabulary is None:
        raise ContractError("holdfast.vocabulary is missing, though the input is a token id")
    if contract.input.dtype != DTYPES["int64" if takes_ids else "float32"]:
        raise ContractError("holdfast.input: dtype must be int64 for a token_id, float32 for features")
    for state in contract.states:
        if not 0 <= state.batch_axis <= len(state.shape):
            raise ContractError(f"state {state.name!r}: batch_axis {state.batch_axis} is out of range")
    if contract.logits is not None and (
        contract.vocabulary is None or contract.logits.shape != (contract.vocabulary.size,)
    ):
        raise ContractError(f"output {contract.logits.name!r}: logits need one value per token id")
    if contract.token_log_prob is not None and contract.token_log_prob.shape != ():
        raise ContractError("the output token_log_prob must be a scalar per token")


def _check_distinct(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ContractError(f"{what} {name!r} is named twice")


def _check_vocabulary(vocabulary: Vocabulary) -> None:
    least = 256 if vocabulary.kind == "bytes" else 1  # any byte may come as text
    if not least <= vocabulary.size < 1 << 31:
        raise ContractError(
            f"holdfast.vocabulary: size {vocabulary.size} of kind {vocabulary.kind!r}, expected >= {least}"
        )


def _check_graph(
    contract: Contract, inputs: Mapping[str, GraphTensor], outputs: Mapping[str, GraphTensor]
) -> None:
    token = contract.input
    token_shape: tuple[int, ...] = () if token.kind == "token_id" else (token.width,)
    leading = ("time", "batch") if token.has_time_axis else ("batch",)
    _check_tensor("input", token.name, inputs, token.dtype, (*leading, *token_shape))
    for state in contract.states:
        axes: tuple[int | str, ...] = (
            *state.shape[: state.batch_axis],
            "batch",
            *state.shape[state.batch_axis :],
        )
        _check_tensor("input", state.input, inputs, state.dtype, axes)
        _check_tensor("output", state.output, outputs, state.dtype, axes)
    for output in contract.outputs:
        _check_tensor("output", output.name, outputs, output.dtype, (*leading, *output.shape))
    fed = {token.name, *(state.input for state in contract.states)}
    for name in inputs:
        if name not in fed:
            raise ContractError(f"input {name!r} is neither the token nor a state of the contract")


def _check_tensor(
    what: str,
    name: str,
    tensors: Mapping[str, GraphTensor],
    dtype: np.dtype[Any],
    expected: tuple[int | str, ...],
) -> None:
    """Checks one tensor; `expected` has the extent of each axis, or the name of a dynamic one."""
    tensor = tensors.get(name)
    if tensor is None:
        known = ", ".join(sorted(tensors))
        raise ContractError(f"the contract names {what} {name!r}, the graph has {known}")
    if DTYPES.get(tensor.dtype) != dtype:
        raise ContractError(f"{what} {name!r} is {tensor.dtype}, the contract says {dtype.name}")
    if len(tensor.shape) != len(expected):
        raise ContractError(f"{what} {name!r} has shape {tensor.shape}, the contract says {expected}")
    for axis, (extent, wanted) in enumerate(zip(tensor.shape, expected, strict=True)):
        if extent is None or extent == "":
            raise ContractError(f"{what} {name!r}: axis {axis} has neither a name nor an extent")
        if isinstance(wanted, str):
            if not isinstance(extent, str):
                raise ContractError(
                    f"{what} {name!r}: the {wanted} axis {axis} is fixed at {extent}, it must be dynamic"
                )
        elif extent != wanted:
            raise ContractError(f"{what} {name!r}: axis {axis} is {extent}, the contract says {wanted}")
