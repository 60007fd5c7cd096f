"""Runs a step graph with onnxruntime. The only place that imports it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.model.contract import Contract, ContractError, GraphTensor, read_contract
from service.model.protocol import Arrays, Halt

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread; a step graph this big would not step in milliseconds anyway."""

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


class ModelFileError(Exception):
    """A model file cannot be served; the message names the file and the reason."""


class StepGraph:
    """Implements `Model` on one file.

    Args:
        path: The ONNX file.
        name: Name in the repository.
        version: Version, >= 1.

    Raises:
        ModelFileError: The file is unreadable, not an ONNX graph, or breaks the contract.
    """

    def __init__(self, path: Path, *, name: str, version: int) -> None:
        self.name = name
        self.version = version
        try:
            data = _read(path)
            self.fingerprint = hashlib.sha256(data).digest()
            self._session = _create_session(data)
            self.contract = _read_contract(self._session)
        except (OSError, ContractError, _NotAGraph) as error:
            raise ModelFileError(f"{path}: {error}") from None
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
        if self.contract.input.has_time_axis:
            return self._call(tokens, states, names, halt)
        rows: list[Arrays] = []
        for row in tokens:
            outputs, states = self._call(row, states, names, halt)
            rows.append(outputs)
        return {name: np.stack([row[name] for row in rows]) for name in names}, states

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


def _read(path: Path) -> bytes:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise _NotAGraph(f"{size_bytes} bytes, more than the limit of {MAX_FILE_BYTES}")
    return path.read_bytes()


def _create_session(data: bytes) -> ort.InferenceSession:
    """Loads a graph from memory, so that it cannot refer to other files.

    One thread: the other cores belong to other workers, and spinning would burn them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
