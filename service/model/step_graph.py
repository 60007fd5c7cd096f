"""Runs a step graph with onnxruntime. The only place that imports it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.model.contract import Contract, ContractError, GraphTensor, read_contract
from service.model.files import ModelFileError, fingerprint_of, read_file
from service.model.protocol import Arrays, Halt

_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


_OFF = np.array(False)
"""Value of a switch."""


class StepGraph:
    """Implements `Model` on one file.

    Args:
        path: The ONNX file.
        name: Name in the repository.
        version: Version, >= 1.
        data: What was read from it and checked; None reads it here, for files that are trusted.
        apart: What of a batch runs apart, beside what the file says of itself: `rows`, `tokens`.

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
    ) -> None:
        self.name = name
        self.version = version
        if data is None:
            data = read_file(path)
        self.fingerprint = fingerprint_of(data)
        try:
            self._session = _create_session(data)
            contract = _read_contract(self._session)
        except (ContractError, _NotAGraph) as error:
            raise ModelFileError(path, str(error)) from None
        self.contract = replace(contract, apart=contract.apart | apart)
        self._runs_rows_apart = "rows" in self.contract.apart
        self._takes_chunks = contract.input.has_time_axis and "tokens" not in self.contract.apart
        self._every_output = tuple(output.name for output in self.contract.outputs)
        self._next_names = [state.output for state in self.contract.states]

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
        if self._runs_rows_apart and tokens.shape[1] > 1:
            return self._run_rows(tokens, states, names, halt)
        if self._takes_chunks:
            return self._call(tokens, states, names, halt)
        has_time_axis = self.contract.input.has_time_axis
        steps: list[Arrays] = []
        for step in tokens[:, np.newaxis] if has_time_axis else tokens:
            outputs, states = self._call(step, states, names, halt)
            steps.append(outputs)
        join = np.concatenate if has_time_axis else np.stack
        return {name: join([step[name] for step in steps]) for name in names}, states

    def _run_rows(
        self, tokens: NDArray[Any], states: Arrays, names: tuple[str, ...], halt: Halt | None
    ) -> tuple[Arrays, Arrays]:
        """Runs each row alone: a graph that mixes rows cannot, then."""
        alone = [
            self.run(
                tokens[:, row : row + 1],
                {name: array[row : row + 1] for name, array in states.items()},
                names,
                halt,
            )
            for row in range(tokens.shape[1])
        ]
        return (
            {name: np.concatenate([outputs[name] for outputs, _ in alone], axis=1) for name in names},
            {name: np.concatenate([after[name] for _, after in alone]) for name in states},
        )

    def _call(
        self, tokens: NDArray[Any], states: Arrays, names: tuple[str, ...], halt: Halt | None
    ) -> tuple[Arrays, Arrays]:
        """Runs the graph once: one token each, or T with a time axis."""
        feed: dict[str, NDArray[Any]] = {self.contract.input.name: tokens}
        for spec in self.contract.states:
            feed[spec.input] = _to_graph(states[spec.name], spec.batch_axis)
        for output in self.contract.outputs:
            if output.switch is not None and output.name not in names:
                feed[output.switch] = _OFF
        results = self._session.run([*names, *self._next_names], feed, halt)
        outputs = dict(zip(names, results, strict=False))
        next_states = {
            spec.name: _from_graph(result, spec.batch_axis)
            for spec, result in zip(self.contract.states, results[len(names) :], strict=True)
        }
        return outputs, next_states


class _NotAGraph(Exception):
    """onnxruntime cannot load the bytes."""


def _create_session(data: bytes) -> ort.InferenceSession:
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
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
        raise _NotAGraph(f"not a loadable ONNX graph: {error}") from None


def _read_contract(session: ort.InferenceSession) -> Contract:
    return read_contract(
        session.get_modelmeta().custom_metadata_map,
        {node.name: _graph_tensor(node) for node in session.get_inputs()},
        {node.name: _graph_tensor(node) for node in session.get_outputs()},
        {node.name: _graph_tensor(node) for node in session.get_overridable_initializers()},
    )


def _graph_tensor(node: Any) -> GraphTensor:
    return GraphTensor(_ORT_DTYPES.get(node.type, node.type), tuple(node.shape))


def _from_graph(states: NDArray[Any], batch_axis: int) -> NDArray[Any]:
    return np.moveaxis(states, batch_axis, 0) if batch_axis else states


def _to_graph(states: NDArray[Any], batch_axis: int) -> NDArray[Any]:
    if batch_axis == 0:
        return states
    return np.ascontiguousarray(np.moveaxis(states, 0, batch_axis))
