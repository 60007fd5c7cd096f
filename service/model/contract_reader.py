"""Makes a contract of a document and of what the graph declares; holds the one against the other. Pure."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from service.model.bundle import Bundle
from service.model.contract import (
    DTYPES,
    RANKED,
    Contract,
    ContractError,
    GraphInput,
    InputSpec,
    Layout,
    OutputSpec,
    Role,
    StateSpec,
    Vocabulary,
)
from service.model.contract_values import (
    Tensor,
    Tensors,
    axes_of,
    check_distinct,
    check_role,
    dtype_of,
    find_tensor,
    for_people,
    id_count_of,
    kind_of,
    labels_of,
    one_of,
    shown,
    text_of,
    tokenizer_of,
    without_context,
)
from service.model.document import Document, from_metadata, from_toml, metadata_bytes, name_of
from service.model.pairing import complete


class Graph(NamedTuple):
    """What a graph declares: inputs, outputs, and inputs with a default, by name."""

    inputs: Tensors
    outputs: Tensors
    switches: Tensors


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
    text_bytes = len(text) or metadata_bytes(metadata)
    return _Reader(document, graph, files, text_bytes).read()


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
        check_distinct("state", [state.name for state in states])
        fed = [part.name for part in inputs] + [state.input for state in states if state.kind != "context"]
        check_distinct("input", [*fed, *constants])
        check_distinct("next state", [state.output for state in states if state.output])
        check_distinct("output", [output.name for output in outputs])
        self._check_all_fed({*fed, *constants})
        facts = self._document.get("facts", {})
        return Contract(
            input=token,
            states=tuple(states),
            outputs=outputs,
            vocabulary=vocabulary,
            feedback=self._feedback(outputs, inputs, token),
            graph_inputs=inputs,
            constants=constants,
            rows_per_run=self._rows,
            tokens_per_run=self._tokens,
            description=text_of(self._document, "description", "description"),
            facts={name_of(name, "a fact's name"): str(text) for name, text in facts.items()},
            text_bytes=self._text_bytes,
        )

    def _limit(self, key: str) -> int | None:
        limit = self._document.get(key)
        if limit is not None and not (type(limit) is int and limit >= 1):
            raise ContractError(f"{key} is {limit!r}, expected a number >= 1, or none for any")
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
        shape, context = without_context(where, entry, name, tensor.rest)
        width = math.prod(shape)
        id_count = 0
        if kind_of(where, entry, tensor.dtype) == "token_id":
            if width != 1:
                raise ContractError(f"{where}: a token_id is one number per token, its axes have {width}")
            if is_one_of_many:
                id_count = id_count_of(where, entry)
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
                **for_people(entry),
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
                **for_people(entry),
            )

    def _outputs(self, has_time_axis: bool, vocabulary: Vocabulary | None) -> tuple[OutputSpec, ...]:
        outputs = []
        for entry in self._document.get("output", []):
            name = name_of(entry.get("name"), "the name of an output")
            where = f"output {name!r}"
            tensor = self._tensor(where, self._graph.outputs, name, entry)
            role = one_of(f"{where}: role", entry.get("role", "raw"), get_args(Role))
            labels = labels_of(where, entry)
            check_role(where, role, tensor, labels, vocabulary)
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
                    **for_people(entry),
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
        is_id = len(inputs) == 1 and kind_of("input", entries[0], inputs[0].dtype) == "token_id"
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
            description=text_of(entries[0], "description", "description of the input"),
        )

    def _feedback(
        self, outputs: Sequence[OutputSpec], inputs: Sequence[GraphInput], token: InputSpec
    ) -> OutputSpec | None:
        if "feedback" not in self._document:
            return None
        name = name_of(self._document["feedback"], "feedback")
        output = next((output for output in outputs if output.name == name), None)
        if output is None:
            known = ", ".join(output.name for output in outputs) or "none"
            raise ContractError(f"feedback is {name!r}, expected the name of an output: {known}")
        if token.kind != "features" or any(part.id_count for part in inputs):
            raise ContractError("feedback is given, though tokens are ids, which are drawn from an output")
        if output.dtype.kind != "f" or math.prod(output.shape) != token.width:
            raise ContractError(
                f"feedback {name!r} is {output.dtype.name} {output.shape}, expected floats, as many as a "
                f"token has features: {token.width}"
            )
        return output

    def _constants(self) -> dict[str, NDArray[Any]]:
        constants = {}
        for name, value in self._document.get("constants", {}).items():
            where = f"constant {name!r}"
            tensor = find_tensor(where, {**self._graph.switches, **self._graph.inputs}, name)
            dtype = dtype_of(where, tensor, {})
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
                raise ContractError(f"{where} has shape {array.shape}, the graph has {shown(extents)}")
            constants[name] = array
        return constants

    def _vocabulary(self) -> Vocabulary | None:
        entry = self._document.get("vocabulary")
        if not entry:
            return None
        kind = one_of("vocabulary: kind", entry.get("kind", "ids"), ("bytes", "ids", "tokenizer"))
        size = entry.get("size", 256 if kind == "bytes" else None)
        least = 256 if kind == "bytes" else 1  # any byte may come as text
        if type(size) is not int or not least <= size < 1 << 31:
            raise ContractError(f"vocabulary: size {size!r} of kind {kind!r}, expected >= {least}")
        return Vocabulary(kind, size, tokenizer_of(entry) if kind == "tokenizer" else None)

    # -- parts --------------------------------------------------------------------------------

    def _tensor(self, where: str, tensors: Tensors, name: str, entry: Document) -> Tensor:
        """Finds a tensor whose axes the contract says; a fixed axis allows one row, or one token, a run."""
        tensor = find_tensor(where, tensors, name)
        axes = axes_of(where, entry)
        dtype = dtype_of(where, tensor, entry)
        if tensor.shape and len(tensor.shape) != len(axes):
            raise ContractError(
                f"{where} has {len(tensor.shape)} axes, {shown(tensor.shape)}; the contract says {axes}"
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
        return Tensor(dtype, tuple(axis for axis in axes if isinstance(axis, int)), Layout(time, batch))

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

    def _initial(self, where: str, entry: Document, tensor: Tensor) -> bytes:
        value = entry.get("initial", 0)
        array = self._array(f"{where}: initial", value, tensor.dtype)
        try:
            whole = np.broadcast_to(array, tensor.rest) if array.size == 1 else array.reshape(tensor.rest)
        except ValueError:
            raise ContractError(
                f"{where}: initial has shape {array.shape}, expected {tensor.rest}"
            ) from None
        if whole.dtype.kind == "f" and not np.isfinite(whole).all():
            raise ContractError(f"{where}: initial holds NaN or infinity, expected finite numbers")
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
            raise ContractError(f"{where} is not {dtype.name}: {str(value)[:40]}")
        return cast

    def _load(self, where: str, name: str) -> NDArray[Any]:
        data = self._files.get(name)
        if data is None:
            raise ContractError(
                f"{where}: the file {name[:60]!r} is not there; expected beside contract.toml"
            )
        return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))

    def _check_switch(self, name: str) -> None:
        tensor = find_tensor(f"switch {name!r}", self._graph.switches, name)
        if tensor.dtype != "bool":
            raise ContractError(f"switch {name!r} is {tensor.dtype}, the contract says bool")
        if tensor.shape:
            raise ContractError(f"switch {name!r} has shape {tensor.shape}, expected one bool")

    def _check_all_fed(self, fed: set[str]) -> None:
        for name, tensor in self._graph.inputs.items():
            if name not in fed:
                raise ContractError(
                    f"input {name!r}, {tensor.dtype} {shown(tensor.shape)}, is not in the contract: it is "
                    "another [[input]], a [[state]], a [[session_input]], or one of [constants]"
                )
