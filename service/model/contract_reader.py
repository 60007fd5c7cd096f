"""Makes a contract of a document and of what the graph declares; holds the one against the other. Pure."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from service.model.bundle import Bundle
from service.model.contract import (
    DTYPES,
    RANKED,
    Context,
    Contract,
    ContractError,
    GraphInput,
    GraphTensor,
    InputSpec,
    Layout,
    OutputSpec,
    Role,
    StateSpec,
    TokenizerFile,
    Vocabulary,
)
from service.model.document import Document, from_metadata, from_toml, name_of
from service.model.pairing import complete

MAX_EXACT_ID = 1 << 24
"""Ids among features travel as float32, which has all integers below this."""

_TENSORS = Mapping[str, GraphTensor]


class Graph(NamedTuple):
    """What a graph declares: inputs, outputs, and inputs with a default, by name."""

    inputs: _TENSORS
    outputs: _TENSORS
    switches: _TENSORS


def read_contract(metadata: Mapping[str, str], graph: Graph, bundle: Bundle | None = None) -> Contract:
    """Reads a graph's contract and checks it against the graph.

    Args:
        metadata: The graph's `metadata_props`, which says what no contract.toml says.
        graph: What the graph declares.
        bundle: Its contract.toml and the files that it names; None if there is none.

    Raises:
        ContractError: The contract is missing, malformed, or not what the graph has.
    """
    text = b"" if bundle is None or bundle.contract is None else bundle.contract
    document = complete((from_toml(text) if text else from_metadata(metadata)) or {}, *graph)
    files = {} if bundle is None else bundle.files
    text_bytes = len(text) or sum(
        len(key) + len(value) for key, value in metadata.items() if key.startswith("holdfast.")
    )
    return _Reader(document, graph, files, text_bytes).read()


class _Tensor(NamedTuple):
    """A tensor of the graph as a contract has it: rest are its extents without time and batch."""

    dtype: np.dtype[Any]
    rest: tuple[int, ...]
    layout: Layout


class _Reader:
    """Reads one document; notes on the way how many rows and tokens the graph's axes allow."""

    def __init__(
        self, document: Document, graph: Graph, files: Mapping[str, bytes], text_bytes: int
    ) -> None:
        self._document = document
        self._graph = graph
        self._files = files
        self._text_bytes = text_bytes
        self._rows = self._limit("rows_per_run")
        self._tokens = self._limit("tokens_per_run")

    def read(self) -> Contract:
        inputs = self._inputs()
        states = [*self._contexts(inputs), *self._states(), *self._session_inputs()]
        if not states:
            raise ContractError(
                "the contract has no state and no context: such a network remembers nothing, and any model "
                "server can serve it"
            )
        vocabulary = self._vocabulary()
        has_time_axis = self._tokens != 1 and all(part.layout.time is not None for part in inputs)
        outputs = self._outputs(has_time_axis, vocabulary)
        token = self._token(inputs, vocabulary, has_time_axis)
        constants = self._constants()
        _check_distinct("state", [state.name for state in states])
        fed = [part.name for part in inputs] + [state.input for state in states if state.kind != "context"]
        _check_distinct("input", [*fed, *constants])
        _check_distinct("next state", [state.output for state in states if state.output])
        _check_distinct("output", [output.name for output in outputs])
        self._check_all_fed({*fed, *constants})
        facts = self._document.get("facts", {})
        return Contract(
            input=token,
            states=tuple(states),
            outputs=outputs,
            vocabulary=vocabulary,
            graph_inputs=inputs,
            constants=constants,
            rows_per_run=self._rows,
            tokens_per_run=self._tokens,
            description=_text(self._document, "description", "description"),
            facts={name_of(name, "a fact's name"): str(text) for name, text in facts.items()},
            text_bytes=self._text_bytes,
        )

    def _limit(self, key: str) -> int | None:
        limit = self._document.get(key)
        if limit is not None and not (type(limit) is int and limit >= 1):
            raise ContractError(f"{key} is {limit!r}, expected is a number >= 1, or none for any")
        return limit

    # -- tensors ------------------------------------------------------------------------------

    def _inputs(self) -> tuple[GraphInput, ...]:
        entries = self._document.get("input", [])
        if not entries:
            raise ContractError("the contract names no input, which takes the token")
        parts: list[GraphInput] = []
        start = 0
        for entry in entries:
            part, width = self._input(entry, start, len(entries) > 1)
            parts.append(part)
            start += width
        if len({part.layout.time is None for part in parts}) > 1:
            self._tokens = 1
        return tuple(parts)

    def _input(self, entry: Document, start: int, is_one_of_many: bool) -> tuple[GraphInput, int]:
        name = name_of(entry.get("name"), "the name of an input")
        where = f"input {name!r}"
        tensor = self._tensor(where, self._graph.inputs, name, entry)
        shape, context = _without_context(where, entry, name, tensor.rest)
        width = math.prod(shape)
        id_count = 0
        if _kind(where, entry, tensor.dtype) == "token_id":
            if width != 1:
                raise ContractError(f"{where}: a token_id is one number per token, its axes have {width}")
            if is_one_of_many:
                id_count = _id_count(where, entry)
        columns = (start, start + width)
        return GraphInput(name, tensor.dtype, shape, tensor.layout, columns, id_count, context), width

    def _contexts(self, inputs: Iterable[GraphInput]) -> Iterable[StateSpec]:
        for part in inputs:
            if part.context is not None:
                axis = part.context.axis
                shape = (*part.shape[:axis], part.context.extent, *part.shape[axis + 1 :])
                yield StateSpec(part.context.state, part.name, "", part.dtype, shape, 0, kind="context")

    def _states(self) -> Iterable[StateSpec]:
        for entry in self._document.get("state", []):
            source = name_of(entry.get("input"), "the input of a state")
            name = name_of(entry.get("name", source), "the name of a state")
            where = f"state {name!r}: input {source!r}"
            before = self._tensor(where, self._graph.inputs, source, entry)
            target = name_of(entry.get("output"), f"state {name!r}: its output")
            after = self._tensor(f"state {name!r}: output {target!r}", self._graph.outputs, target, entry)
            if before.dtype != after.dtype:
                raise ContractError(
                    f"state {name!r}: input {source!r} is {before.dtype.name}, output {target!r} is "
                    f"{after.dtype.name}; a state follows itself, so both must be the same"
                )
            initial = self._initial(f"state {name!r}", entry, before)
            yield StateSpec(
                name,
                source,
                target,
                before.dtype,
                before.rest,
                before.layout.batch,
                initial,
                "state",
                **_people(entry),
            )

    def _session_inputs(self) -> Iterable[StateSpec]:
        for entry in self._document.get("session_input", []):
            name = name_of(entry.get("name"), "the name of a session_input")
            where = f"session_input {name!r}"
            tensor = self._tensor(where, self._graph.inputs, name, entry)
            initial = self._initial(where, entry, tensor)
            is_required = "initial" not in entry
            yield StateSpec(
                name,
                name,
                "",
                tensor.dtype,
                tensor.rest,
                tensor.layout.batch,
                initial,
                "session_input",
                is_required,
                **_people(entry),
            )

    def _outputs(self, has_time_axis: bool, vocabulary: Vocabulary | None) -> tuple[OutputSpec, ...]:
        outputs = []
        for entry in self._document.get("output", []):
            name = name_of(entry.get("name"), "the name of an output")
            where = f"output {name!r}"
            tensor = self._tensor(where, self._graph.outputs, name, entry)
            role = _one_of(f"{where}: role", entry.get("role", "raw"), get_args(Role))
            labels = _labels(where, entry)
            _check_role(where, role, tensor, labels, vocabulary)
            is_last = has_time_axis and tensor.layout.time is None
            switch = entry.get("switch")
            if switch is not None:
                self._check_switch(name_of(switch, f"{where}: switch"))
            outputs.append(
                OutputSpec(
                    name,
                    tensor.dtype,
                    tensor.rest,
                    role,
                    switch,
                    tensor.layout,
                    is_last,
                    labels,
                    **_people(entry),
                )
            )
        if sum(output.role in RANKED for output in outputs) > 1:
            raise ContractError(
                f"more than one output has a role of {', '.join(RANKED)}; top_k ranks by one"
            )
        return tuple(outputs)

    def _token(
        self, inputs: Sequence[GraphInput], vocabulary: Vocabulary | None, has_time_axis: bool
    ) -> InputSpec:
        entries = self._document["input"]
        is_id = len(inputs) == 1 and _kind("input", entries[0], inputs[0].dtype) == "token_id"
        if is_id and vocabulary is None:
            raise ContractError(
                f"vocabulary is missing, though the input {inputs[0].name!r} is a token id: write "
                '[vocabulary], kind = "bytes" or "ids", size = N'
            )
        if not is_id and vocabulary is not None and not any(part.id_count for part in inputs):
            labels = "name classes by labels of their output"
            if not any(entry.get("role") in RANKED for entry in self._document.get("output", [])):
                raise ContractError(f"vocabulary is given, though the input takes features; {labels}")
        units = [entry.get("units", "") for entry in entries]
        return InputSpec(
            name=", ".join(part.name for part in inputs),
            kind="token_id" if is_id else "features",
            dtype=DTYPES["int64" if is_id else "float32"],
            width=1 if is_id else sum(math.prod(part.shape) for part in inputs),
            has_time_axis=has_time_axis,
            units=", ".join(map(str, filter(None, units))),
            description=_text(entries[0], "description", "description of the input"),
        )

    def _constants(self) -> dict[str, NDArray[Any]]:
        constants = {}
        for name, value in self._document.get("constants", {}).items():
            where = f"constant {name!r}"
            tensor = _find(where, {**self._graph.switches, **self._graph.inputs}, name)
            dtype = _dtype(where, tensor, {})
            array = self._array(where, value, dtype)
            extents = tensor.shape
            fits = len(extents) == array.ndim and all(
                not isinstance(extent, int) or extent == given
                for extent, given in zip(extents, array.shape, strict=True)
            )
            if not fits and array.size == 1:
                array = array.reshape([1] * len(extents))
                fits = all(not isinstance(extent, int) or extent == 1 for extent in extents)
            if not fits:
                raise ContractError(f"{where} has shape {array.shape}, the graph has {_shown(extents)}")
            constants[name] = array
        return constants

    def _vocabulary(self) -> Vocabulary | None:
        entry = self._document.get("vocabulary")
        if not entry:
            return None
        kind = _one_of("vocabulary: kind", entry.get("kind", "ids"), ("bytes", "ids", "tokenizer"))
        size = entry.get("size", 256 if kind == "bytes" else None)
        least = 256 if kind == "bytes" else 1  # any byte may come as text
        if type(size) is not int or not least <= size < 1 << 31:
            raise ContractError(f"vocabulary: size {size!r} of kind {kind!r}, expected >= {least}")
        return Vocabulary(kind, size, _tokenizer(entry) if kind == "tokenizer" else None)

    # -- parts --------------------------------------------------------------------------------

    def _tensor(self, where: str, tensors: _TENSORS, name: str, entry: Document) -> _Tensor:
        """Finds a tensor whose axes the contract says; a fixed axis allows one row, or one token, a run."""
        tensor = _find(where, tensors, name)
        axes = _axes(where, entry)
        dtype = _dtype(where, tensor, entry)
        if tensor.shape and len(tensor.shape) != len(axes):
            raise ContractError(
                f"{where} has {len(tensor.shape)} axes, {_shown(tensor.shape)}; the contract says {axes}"
            )
        for place, (extent, axis) in enumerate(zip(tensor.shape, axes, strict=False)):
            if not isinstance(extent, int):
                continue
            if isinstance(axis, int) and axis != extent:
                raise ContractError(f"{where}: axis {place} is {extent}, the contract says {axis}")
            if not isinstance(axis, int):
                self._fix(where, axis, place, extent)
        if "batch" not in axes:
            self._rows = 1
        if "time" in axes and not where.startswith(("input", "output")):
            raise ContractError(f'{where}: only tokens and outputs have an axis "time"; write its number')
        time, batch = (axes.index(axis) if axis in axes else None for axis in ("time", "batch"))
        return _Tensor(dtype, tuple(axis for axis in axes if isinstance(axis, int)), Layout(time, batch))

    def _fix(self, where: str, axis: str, place: int, extent: int) -> None:
        if extent != 1:
            raise ContractError(
                f"{where}: the {axis} axis {place} is fixed at {extent}; export it with a dynamic axis, or "
                "with 1 to be run one at a time"
            )
        if axis == "batch":
            self._rows = 1
        else:
            self._tokens = 1

    def _initial(self, where: str, entry: Document, tensor: _Tensor) -> bytes:
        value = entry.get("initial", 0)
        array = self._array(f"{where}: initial", value, tensor.dtype)
        try:
            whole = np.broadcast_to(array, tensor.rest) if array.size == 1 else array.reshape(tensor.rest)
        except ValueError:
            raise ContractError(
                f"{where}: initial has shape {array.shape}, expected is {tensor.rest}"
            ) from None
        if whole.dtype.kind == "f" and not np.isfinite(whole).all():
            raise ContractError(f"{where}: initial holds NaN or infinity, expected are finite numbers")
        return whole.tobytes() if np.any(whole) else b""

    def _array(self, where: str, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        try:
            array = self._load(where, value) if isinstance(value, str) else np.array(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ContractError(f"{where} cannot be read: {error}") from None
        with np.errstate(all="ignore"):
            cast = array.astype(dtype) if array.dtype.kind in "biuf" else None
        is_rounded = array.dtype.kind == dtype.kind == "f"
        if cast is None or not (is_rounded or np.array_equal(cast, array)):
            raise ContractError(f"{where} is no {dtype.name}: {str(value)[:40]}")
        return cast

    def _load(self, where: str, name: str) -> NDArray[Any]:
        data = self._files.get(name)
        if data is None:
            raise ContractError(
                f"{where}: the file {name[:60]!r} is not there; expected beside contract.toml"
            )
        return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))

    def _check_switch(self, name: str) -> None:
        tensor = _find(f"switch {name!r}", self._graph.switches, name)
        if tensor.dtype != "bool":
            raise ContractError(f"switch {name!r} is {tensor.dtype}, the contract says bool")
        if tensor.shape:
            raise ContractError(f"switch {name!r} has shape {tensor.shape}, expected is one bool")

    def _check_all_fed(self, fed: set[str]) -> None:
        for name, tensor in self._graph.inputs.items():
            if name not in fed:
                raise ContractError(
                    f"input {name!r}, {tensor.dtype} {_shown(tensor.shape)}, is not in the contract: it is "
                    "another [[input]], a [[state]], a [[session_input]], or one of [constants]"
                )


def _find(where: str, tensors: _TENSORS, name: str) -> GraphTensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise ContractError(
            f"{where} is not in the graph, which has {', '.join(sorted(tensors)) or 'none'}"
        )
    return tensor


def _dtype(where: str, tensor: GraphTensor, entry: Mapping[str, Any]) -> np.dtype[Any]:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ContractError(f"{where} is {tensor.dtype}, expected is one of {', '.join(DTYPES)}")
    said = entry.get("dtype", tensor.dtype)
    if said != tensor.dtype:
        raise ContractError(f"{where} is {tensor.dtype}, the contract says {said}")
    return dtype


def _axes(where: str, entry: Document) -> list[int | str]:
    axes = entry.get("axes")
    if not isinstance(axes, list):
        raise ContractError(f'{where}: axes are {axes!r}, expected is a list such as ["batch", 128]')
    for axis in axes:
        if axis not in ("batch", "time") and not (type(axis) is int and axis >= 1):
            low = "is below 1" if type(axis) is int else 'is none: a number, "batch" or "time"'
            raise ContractError(f"{where}: the axis {str(axis)[:40]!r} {low}")
    for axis in ("batch", "time"):
        if axes.count(axis) > 1:
            raise ContractError(f"{where}: its axes name {axis} twice")
    return axes


def _kind(where: str, entry: Document, dtype: np.dtype[Any]) -> str:
    usual = "token_id" if dtype.kind == "i" and dtype.itemsize >= 4 else "features"
    kind: str = _one_of(f"{where}: kind", entry.get("kind", usual), ("token_id", "features"))
    if kind == "token_id" and dtype.kind != "i":
        raise ContractError(f"{where}: a token_id is int32 or int64, the graph has {dtype.name}")
    return kind


def _id_count(where: str, entry: Document) -> int:
    size = entry.get("size")
    if type(size) is not int or not 1 <= size <= MAX_EXACT_ID:
        raise ContractError(
            f"{where}: size is {size!r}, expected is the number of ids, 1..{MAX_EXACT_ID}, as it is one of "
            "several inputs"
        )
    return size


def _without_context(
    where: str, entry: Document, name: str, rest: tuple[int, ...]
) -> tuple[tuple[int, ...], Context | None]:
    """Returns the extents of a token's own values, and what is put before them."""
    kept = entry.get("context", 0)
    if type(kept) is not int or kept < 0:
        raise ContractError(f"{where}: context is {kept!r}, expected is a number >= 0")
    new = entry.get("token")
    if new is None:
        if kept:
            raise ContractError(f"{where}: it has context but no token, the number of new values per token")
        return rest, None
    if type(new) is not int or new < 1:
        raise ContractError(f"{where}: token is {new!r}, expected is a number >= 1")
    fitting = [axis for axis, extent in enumerate(rest) if extent == new + kept]
    if not fitting:
        raise ContractError(
            f"{where}: token {new} and context {kept} make {new + kept}, no axis of {list(rest)} has that"
        )
    axis = fitting[-1]
    shape = (*rest[:axis], new, *rest[axis + 1 :])
    return shape, Context(f"{name}.context", axis, kept) if kept else None


def _tokenizer(entry: Document) -> TokenizerFile:
    name, sha256, start = entry.get("file"), entry.get("sha256"), entry.get("start")
    if name is None:
        raise ContractError(
            'vocabulary: a tokenizer needs file = "tokenizer.json", which lies beside contract.toml'
        )
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ContractError(
            f"vocabulary: sha256 is {str(sha256)[:70]!r}, expected is what sha256sum says of {name}"
        )
    if start is not None and not (type(start) is int and start >= 0):
        raise ContractError(f"vocabulary: start is {start!r}, expected is an id, or none")
    return TokenizerFile(name, sha256, start)


def _labels(where: str, entry: Document) -> tuple[str, ...]:
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ContractError(f"{where}: labels are {str(labels)[:40]!r}, expected is a list of names")
    return tuple(labels)


def _check_role(
    where: str, role: str, tensor: _Tensor, labels: tuple[str, ...], vocabulary: Vocabulary | None
) -> None:
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
                f"{where}: {role} is {tensor.dtype.name}, expected is float32, float16 or float64"
            )
    if role == "token_log_prob" and tensor.rest != ():
        raise ContractError(f"{where}: token_log_prob must be a scalar per token, it is {tensor.rest}")


class _ForPeople(TypedDict):
    units: str
    description: str


def _people(entry: Document) -> _ForPeople:
    return {
        "units": _text(entry, "units", "units"),
        "description": _text(entry, "description", "description"),
    }


def _text(entry: Document, key: str, where: str) -> str:
    text = entry.get(key, "")
    if not isinstance(text, str):
        raise ContractError(f"{where} is {str(text)[:40]!r}, expected is text")
    return text


def _one_of(where: str, value: Any, choices: Sequence[str]) -> Any:
    if value not in choices:
        raise ContractError(f"{where} is {str(value)[:40]!r}, expected is one of {', '.join(choices)}")
    return value


def _check_distinct(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ContractError(f"{what} {name!r} is named twice")


def _shown(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if extent in (None, "") else str(extent) for extent in shape) + "]"
