"""Runs a step graph with onnxruntime. The only place that imports it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.model.arrangement import Arrangement, arrangement
from service.model.bundle import Bundle, BundleError, unpack
from service.model.contract import (
    Context,
    Contract,
    ContractError,
    GraphTensor,
    Layout,
    StateSpec,
)
from service.model.contract_reader import Graph, read_contract
from service.model.files import ModelFileError, fingerprint_of, read_model
from service.model.protocol import Arrays, Halt
from service.model.providers import Providers

_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

ON_CPU = Providers()

_OFF = np.array(False)
"""Value of a switch."""


class StepGraph:
    """Implements `Model` on one file, with its contract.

    Args:
        path: The ONNX file.
        name: Name in the repository.
        version: Version, >= 1.
        data: What was read and checked, see `bundle`; None reads it here, for files that are trusted.
        apart: What of a batch runs apart, beside what the contract says: `rows`, `tokens`.
        providers: What runs it.

    Raises:
        ModelFileError: The file is unreadable, not an ONNX graph, or breaks the contract.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        version: int,
        data: bytes | None = None,
        apart: frozenset[str] = frozenset(),
        providers: Providers = ON_CPU,
    ) -> None:
        self.name = name
        self.version = version
        if data is None:
            data = read_model(path)
        self.fingerprint = fingerprint_of(data)
        try:
            bundle = unpack(data)
            self._session = _create_session(bundle.graph, providers.names)
            contract = _read_contract(self._session, bundle)
        except (BundleError, ContractError, _NotAGraph) as error:
            raise ModelFileError(path, str(error)) from None
        if "rows" in apart:
            contract = replace(contract, rows_per_run=1)
        if "tokens" in apart:
            contract = replace(contract, tokens_per_run=1)
        if providers.most_rows is not None:
            contract = replace(contract, rows_per_run=providers.rows_per_run(contract.rows_per_run))
        self.contract = contract
        self._tokens_per_run = contract.tokens_per_run if contract.input.has_time_axis else 1
        self._every_output = tuple(output.name for output in contract.outputs)
        self._fed = [spec for spec in contract.states if spec.kind != "context"]
        self._made = [spec for spec in contract.states if spec.output]
        self._next_names = [spec.output for spec in self._made]
        # None stands for tensors that are the same in both, mostly all of them
        self._token_axes = [
            (part.name, arrangement(part.layout, len(part.shape))) for part in contract.graph_inputs
        ]
        self._output_axes = {
            output.name: arrangement(output.layout, len(output.shape)) for output in contract.outputs
        }
        self._state_axes = {
            spec.name: None if spec.batch_axis == 0 else Arrangement(Layout(None, spec.batch_axis), rank)
            for spec in self._fed
            for rank in [len(spec.shape)]
        }

    def new_halt(self) -> Halt:
        """Returns what can end one run, at the next node or turn of a loop in the graph."""
        halt: Halt = ort.RunOptions()
        return halt

    def run(
        self,
        tokens: NDArray[Any],
        states: Arrays,
        needed: tuple[str, ...] | None = None,
        halt: Halt | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Advances B sessions by T tokens each; see `Model.run`."""
        names = self._every_output if needed is None else needed
        most = self.contract.rows_per_run
        if most is not None and tokens.shape[1] > most:
            return self._run_rows(tokens, states, names, halt, most)
        arrays, kept = split_tokens(self.contract, tokens, states)
        most, token_count = self._tokens_per_run, len(tokens)
        if most is None or token_count <= most:
            outputs, after = self._call(arrays, states, names, halt)
        else:
            outputs, after = self._run_tokens(arrays, states, names, halt, most)
        if len(self._made) < len(self.contract.states):
            after = {spec.name: _next(spec, after, kept, states) for spec in self.contract.states}
        return outputs, after

    def _run_rows(
        self, tokens: NDArray[Any], states: Arrays, names: tuple[str, ...], halt: Halt | None, most: int
    ) -> tuple[Arrays, Arrays]:
        """Runs a few rows at a time: a graph that mixes rows, or takes no more of them, gets no more."""
        parts = [
            self.run(
                tokens[:, start : start + most],
                {name: array[start : start + most] for name, array in states.items()},
                names,
                halt,
            )
            for start in range(0, tokens.shape[1], most)
        ]
        return (
            {name: np.concatenate([outputs[name] for outputs, _ in parts], axis=1) for name in names},
            {name: np.concatenate([after[name] for _, after in parts]) for name in states},
        )

    def _run_tokens(
        self,
        arrays: list[NDArray[Any]],
        states: Arrays,
        names: tuple[str, ...],
        halt: Halt | None,
        most: int,
    ) -> tuple[Arrays, Arrays]:
        """Runs a few tokens at a time, one after the other."""
        parts: list[Arrays] = []
        for start in range(0, len(arrays[0]), most):
            outputs, after = self._call(
                [array[start : start + most] for array in arrays], states, names, halt
            )
            parts.append(outputs)
            states = {**states, **after}
        return {
            name: parts[-1][name]
            if self.contract.outputs_by_name[name].is_last
            else np.concatenate([part[name] for part in parts])
            for name in names
        }, after

    def _call(
        self, arrays: list[NDArray[Any]], states: Arrays, names: tuple[str, ...], halt: Halt | None
    ) -> tuple[Arrays, Arrays]:
        """Runs the graph once: one token each, or T with a time axis."""
        contract = self.contract
        feed: dict[str, NDArray[Any]] = dict(contract.constants)
        for (name, axes), array in zip(self._token_axes, arrays, strict=True):
            feed[name] = array if axes is None else axes.to_graph(array)
        for spec in self._fed:
            state, axes = states[spec.name], self._state_axes[spec.name]
            feed[spec.input] = state if axes is None else axes.to_graph(state[np.newaxis])
        for output in contract.outputs:
            if output.switch is not None and output.name not in names:
                feed[output.switch] = _OFF
        fetched = [*names, *self._next_names]
        if not fetched:  # of a network whose only memory is its context; onnxruntime would give all outputs
            return {}, {}
        results = self._session.run(fetched, feed, halt)
        outputs, after = {}, {}
        for name, result in zip(names, results, strict=False):
            axes = self._output_axes[name]
            outputs[name] = result if axes is None else axes.from_graph(result)
        for spec, result in zip(self._made, results[len(names) :], strict=True):
            axes = self._state_axes[spec.name]
            after[spec.name] = result if axes is None else axes.from_graph(result)[0]
        return outputs, after


def split_tokens(
    contract: Contract, tokens: NDArray[Any], states: Arrays
) -> tuple[list[NDArray[Any]], Arrays]:
    """Returns what each input gets, in the order of the contract's, and the contexts behind the tokens.

    Args:
        contract: Of the graph.
        tokens: int64 (T, B) ids, or float32 (T, B, width) features.
        states: State name -> (B, ...); contexts are taken out of it.

    Returns:
        Arrays (T, B, ...) in the graph's dtype, and state name -> (B, ...).
    """
    arrays, contexts = [], {}
    for part in contract.graph_inputs:
        own = tokens[..., slice(*part.columns)] if contract.input.kind == "features" else tokens
        if own.shape[2:] != part.shape:
            own = own.reshape(*own.shape[:2], *part.shape)
        own = own.astype(part.dtype, copy=False)
        if part.context is not None:
            own, contexts[part.context.state] = _windows(own, states[part.context.state], part.context)
        arrays.append(own)
    return arrays, contexts


def _next(spec: StateSpec, after: Arrays, kept: Arrays, before: Arrays) -> NDArray[Any]:
    """Returns what follows upon a state: what the graph made, what a window keeps, or what it was."""
    if spec.kind == "state":
        return after[spec.name]
    return kept[spec.name] if spec.kind == "context" else before[spec.name]


def _windows(own: NDArray[Any], kept: NDArray[Any], context: Context) -> tuple[NDArray[Any], NDArray[Any]]:
    """Puts before each token what came before it.

    Args:
        own: (T, B, ...) of the tokens.
        kept: (B, ...) of the tokens before them.
        context: Which axis goes on.

    Returns:
        Windows (T, B, ...), and what is to be kept (B, ...).
    """
    token_count, new = len(own), own.shape[2 + context.axis]
    line = np.moveaxis(np.moveaxis(own, 2 + context.axis, -1), 0, -2)  # (B, other axes, T, new)
    line = line.reshape(*line.shape[:-2], token_count * new)
    line = np.concatenate([np.moveaxis(kept, 1 + context.axis, -1), line], axis=-1)
    after = line[..., line.shape[-1] - context.extent :]
    every = np.lib.stride_tricks.sliding_window_view(line, context.extent + new, axis=-1)[..., ::new, :]
    windows = np.moveaxis(np.moveaxis(every, -2, 0), -1, 2 + context.axis)
    return np.ascontiguousarray(windows), np.ascontiguousarray(np.moveaxis(after, -1, 1 + context.axis))


class BareGraph:
    """A graph without a contract.

    Args:
        data: The ONNX file.

    Attributes:
        declared: What it declares.
        metadata: Its metadata_props.

    Raises:
        ModelFileError: It is not an ONNX graph.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._session = _create_session(data)
            self.declared = graph_of(self._session)
        except (ContractError, _NotAGraph) as error:
            raise ModelFileError(Path(), str(error)) from None
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def shapes(self, feed: Arrays) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each output for these inputs; raises whatever onnxruntime raises."""
        names = list(self.declared.outputs)
        results = self._session.run(names, feed)
        return {name: np.shape(result) for name, result in zip(names, results, strict=True)}


class _NotAGraph(Exception):
    """onnxruntime cannot load the bytes."""


def check_available(providers: Providers) -> None:
    """Refuses providers that this onnxruntime does not have; it would only warn, and run on the CPU.

    Raises:
        ValueError: As said.
    """
    available = ort.get_available_providers()
    for name in providers.names:
        if name not in available:
            raise ValueError(
                f"{name}: this onnxruntime has {', '.join(available)}; install the build of onnxruntime "
                "that has it"
            )


def _create_session(data: bytes, providers: tuple[str, ...] = ON_CPU.names) -> ort.InferenceSession:
    """Loads a graph from memory, so that it cannot refer to other files.

    As ONNX only: into onnxruntime's own format, which it would recognise too, nobody has looked.
    One thread: the other cores belong to other workers, and spinning would burn them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=list(providers))
    except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
        raise _NotAGraph(f"not a loadable ONNX graph: {error}") from None


def _read_contract(session: ort.InferenceSession, bundle: Bundle) -> Contract:
    return read_contract(session.get_modelmeta().custom_metadata_map, graph_of(session), bundle)


def graph_of(session: ort.InferenceSession) -> Graph:
    """Returns what a loaded graph declares.

    Raises:
        ContractError: Two of its inputs, or outputs, have one name.
    """
    return Graph(
        _by_name("inputs", session.get_inputs()),
        _by_name("outputs", session.get_outputs()),
        _by_name("inputs", session.get_overridable_initializers()),
    )


def _by_name(what: str, nodes: Sequence[Any]) -> dict[str, GraphTensor]:
    tensors: dict[str, GraphTensor] = {}
    for node in nodes:
        if node.name in tensors:
            raise ContractError(f"the graph has two {what} named {node.name!r}; give each its own name")
        dtype = _ORT_DTYPES.get(node.type) or node.type.removeprefix("tensor(").removesuffix(")")
        tensors[node.name] = GraphTensor(dtype, tuple(node.shape))
    return tensors
