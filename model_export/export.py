"""Turns a trained network into a step graph and lets it out only through the parity gate.

The graph is built node by node, since a step of a cell is about ten operations and every one of them
costs in serving. One product with h gives both the gates and the logits of the step before, from which
`token_log_prob` follows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_export.contract import byte_network_contract
from model_export.networks import VOCABULARY_SIZE, StepNetwork
from model_export.parity import Parity, check_parity

OPSET = 20
IR_VERSION = 10


def export(network: StepNetwork, target: Path, *, training: dict[str, Any], text: bytes) -> Parity:
    """Writes the step graph of a network.

    Args:
        network: Trained, in evaluation mode.
        target: The file to write; its folder is made. It appears only if the gate lets it pass.
        training: Facts to record.
        text: Bytes for the gate to run.

    Returns:
        What the gate measured.

    Raises:
        ParityError: The graph does not compute what the network computes; no file is left.
    """
    model = build_graph(network)
    parity = check_parity(network, model.SerializeToString(), text)
    metadata = byte_network_contract(
        network.hidden, network.state_names, training=training, parity=parity._asdict()
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    draft.write_bytes(model.SerializeToString())
    draft.replace(target)
    return parity


def build_graph(network: StepNetwork) -> onnx.ModelProto:
    """Builds the step graph: inputs token (batch,) and states, outputs as in `StepNetwork.forward`."""
    builder = _GraphBuilder(network)
    nodes = builder.build()
    states: list[tuple[str, list[str | int]]] = [
        (name, ["batch", network.hidden]) for name in network.state_names
    ]
    graph = helper.make_graph(
        nodes,
        f"{network.kind}-step",
        inputs=[
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            *(_float_info(name, shape) for name, shape in states),
        ],
        outputs=[
            _float_info("logits", ["batch", VOCABULARY_SIZE]),
            _float_info("token_log_prob", ["batch"]),
            *(_float_info(f"{name}_next", shape) for name, shape in states),
        ],
        initializer=builder.initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="holdfast",
    )


def _float_info(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _GraphBuilder:
    """Collects nodes and weights; each method adds the nodes of one equation."""

    def __init__(self, network: StepNetwork) -> None:
        self._network = network
        self._hidden = network.hidden
        self._nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def build(self) -> list[onnx.NodeProto]:
        network = self._network
        self._weight("table", network.table)
        self._weight("readout", network.readout.weight.T)
        self._weight("readout_bias", network.readout.bias)
        self._product_with_h()
        self._surprise()
        self._add("Gather", ["table", "token"], ["input_gates"])
        getattr(self, f"_{network.kind}")()
        self._add("Gemm", ["h_next", "readout", "readout_bias"], ["logits"])
        return self._nodes

    def _product_with_h(self) -> None:
        """[W_hh h + b, W_hy h + c] as one product; without memory only the second."""
        network = self._network
        if network.recurrent is None:
            self._add("Gemm", ["h", "readout", "readout_bias"], ["logits_before"])
            return
        joined = np.concatenate([_array(network.recurrent.weight), _array(network.readout.weight)])
        bias = np.concatenate([_array(network.recurrent.bias), _array(network.readout.bias)])
        self._weight("joined", joined.T)
        self._weight("joined_bias", bias)
        self._add("Gemm", ["h", "joined", "joined_bias"], ["product"])
        sizes = [network.gate_count * self._hidden, VOCABULARY_SIZE]
        self._split("product", sizes, ["hidden_gates", "logits_before"])

    def _surprise(self) -> None:
        """token_log_prob = log_softmax(W_hy h_(t-1) + c)[token]."""
        self._constant("last_axis", [1])
        self._add("LogSoftmax", ["logits_before"], ["log_probs_before"], axis=1)
        self._add("Unsqueeze", ["token", "last_axis"], ["token_column"])
        gathered = ["log_prob_column"]
        self._add("GatherElements", ["log_probs_before", "token_column"], gathered, axis=1)
        self._add("Squeeze", ["log_prob_column", "last_axis"], ["token_log_prob"])

    def _feedforward(self) -> None:
        self._add("Tanh", ["input_gates"], ["h_next"])

    def _elman(self) -> None:
        self._add("Add", ["input_gates", "hidden_gates"], ["sum"])
        self._add("Tanh", ["sum"], ["h_next"])

    def _gru(self) -> None:
        size = self._hidden
        self._split("input_gates", [2 * size, size], ["input_rz", "input_n"])
        self._split("hidden_gates", [2 * size, size], ["hidden_rz", "hidden_n"])
        self._add("Add", ["input_rz", "hidden_rz"], ["sum_rz"])
        self._add("Sigmoid", ["sum_rz"], ["rz"])
        self._split("rz", [size, size], ["r", "z"])
        self._add("Mul", ["r", "hidden_n"], ["reset"])
        self._add("Add", ["input_n", "reset"], ["sum_n"])
        self._add("Tanh", ["sum_n"], ["n"])
        self._add("Sub", ["h", "n"], ["change"])
        self._add("Mul", ["z", "change"], ["kept"])
        self._add("Add", ["n", "kept"], ["h_next"])

    def _lstm(self) -> None:
        size = self._hidden
        self._add("Add", ["input_gates", "hidden_gates"], ["sum"])
        self._split("sum", [3 * size, size], ["sum_ifo", "sum_g"])
        self._add("Sigmoid", ["sum_ifo"], ["ifo"])
        self._split("ifo", [size, size, size], ["i", "f", "o"])
        self._add("Tanh", ["sum_g"], ["g"])
        self._add("Mul", ["f", "c"], ["kept"])
        self._add("Mul", ["i", "g"], ["added"])
        self._add("Add", ["kept", "added"], ["c_next"])
        self._add("Tanh", ["c_next"], ["squashed"])
        self._add("Mul", ["o", "squashed"], ["h_next"])

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _split(self, source: str, sizes: list[int], outputs: list[str]) -> None:
        sizes_name = f"{source}_sizes"
        self._constant(sizes_name, sizes)
        self._add("Split", [source, sizes_name], outputs, axis=1)

    def _constant(self, name: str, values: list[int]) -> None:
        self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))

    def _weight(self, name: str, values: Any) -> None:
        array = np.ascontiguousarray(_array(values), np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))


def _array(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(values, np.ndarray):
        return values
    array: np.ndarray[Any, np.dtype[Any]] = values.detach().numpy()
    return array
