"""Builds a step graph from weights, node by node: no traced code, so no shape arithmetic is left in it.

The graph has a time axis. Only what needs the state of the step before runs step by step, in one Scan per
layer; looking up the inputs and ranking the outputs are one operation each for all tokens. A gate is one
Gemm that adds the state's share to the input's, so nothing is cut apart or added up afterwards.

token_log_prob needs the readout of the state before the first token, a fifth of a step, and onnxruntime
runs every node whatever outputs are asked for. So an optional input switches it off. Knows no torch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.contract import SWITCH

OPSET = 20
IR_VERSION = 10

STATE_NAMES = {"feedforward": ("h",), "elman": ("h",), "gru": ("h",), "lstm": ("h", "c")}
"""Names of a layer's state tensors by kind of network, h first."""

GATES = {"feedforward": ("h",), "elman": ("h",), "gru": ("r", "z", "n"), "lstm": ("i", "f", "o", "g")}
"""Gates by kind of network, in the order of the weights."""


class Layer(NamedTuple):
    """One recurrent layer; products are written x W, float32.

    Attributes:
        inputs: The input's share of each gate. In the first layer a table by token, (vocabulary, gates *
            hidden), in the others (hidden of the layer below, gates * hidden).
        recurrent: (hidden, gates * hidden); None without memory.
        bias: (gates * hidden,); None without memory.
    """

    inputs: NDArray[np.float32]
    recurrent: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None


class Weights(NamedTuple):
    """What a network over a vocabulary has learnt.

    Attributes:
        kind: `feedforward`, `elman`, `gru` or `lstm`.
        layers: The one that reads the tokens first.
        readout: (hidden, vocabulary).
        readout_bias: (vocabulary,).
    """

    kind: str
    layers: Sequence[Layer]
    readout: NDArray[np.float32]
    readout_bias: NDArray[np.float32]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors; those of the second layer end in 2."""
        return tuple(
            name + _suffix(number) for number in range(len(self.layers)) for name in STATE_NAMES[self.kind]
        )


def build_graph(weights: Weights) -> onnx.ModelProto:
    """Builds the step graph: T steps in one call, for any T >= 1.

    Inputs are token (time, batch), the states (batch, hidden) and the optional switch; outputs logits
    (time, batch, vocabulary), token_log_prob (time, batch) and the next states.
    """
    builder = _GraphBuilder(weights)
    nodes = builder.build()
    hidden, vocabulary = weights.readout.shape
    graph = helper.make_graph(
        nodes,
        f"{weights.kind}-step",
        inputs=[
            helper.make_tensor_value_info("token", TensorProto.INT64, ["time", "batch"]),
            *(_float_info(name, ["batch", hidden]) for name in weights.state_names),
            helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, []),
        ],
        outputs=[
            _float_info("logits", ["time", "batch", vocabulary]),
            _float_info("token_log_prob", ["time", "batch"]),
            *(_float_info(f"{name}_next", ["batch", hidden]) for name in weights.state_names),
        ],
        initializer=builder.initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="holdfast",
    )


def _suffix(layer_number: int) -> str:
    return str(layer_number + 1) if layer_number else ""


def _float_info(name: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _GraphBuilder:
    """Collects nodes and weights; each method adds the nodes of one equation."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._hidden = len(weights.readout)
        self._gates = GATES[weights.kind]
        self._nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def build(self) -> list[onnx.NodeProto]:
        below = "token"
        for number, layer in enumerate(self._weights.layers):
            below = self._layer(layer, _suffix(number), below)
        self._readout(below)
        self._surprise("h" + _suffix(len(self._weights.layers) - 1))
        return self._nodes

    def _layer(self, layer: Layer, suffix: str, below: str) -> str:
        """Adds a layer that reads `below`; returns the name of its h after every token."""
        self._input_gates(layer, suffix, below)
        if layer.recurrent is None:
            self._feedforward()
        else:
            self._scan(layer, layer.recurrent, suffix)
        return f"h_all{suffix}"

    def _input_gates(self, layer: Layer, suffix: str, below: str) -> None:
        """The input's share of each gate for all tokens, biases included."""
        for gate in self._gates:
            values, bias = self._of_gate(layer.inputs, gate), self._outer_bias(layer, gate)
            weight, target = f"inputs_{gate}{suffix}", f"input_{gate}{suffix}"
            if below == "token":
                self._weight(weight, values + bias)
                self._add("Gather", [weight, below], [target])
            else:
                self._weight(weight, values)
                self._weight(f"bias_{gate}{suffix}", bias)
                self._add("MatMul", [below, weight], [f"{target}_product"])
                self._add("Add", [f"{target}_product", f"bias_{gate}{suffix}"], [target])

    def _feedforward(self) -> None:
        self._add("Tanh", ["input_h"], ["h_all"])
        self._constant("last", -1)
        self._add("Gather", ["h_all", "last"], ["h_next"], axis=0)

    def _scan(self, layer: Layer, recurrent: NDArray[np.float32], suffix: str) -> None:
        """Runs the cell over the time axis of its input gates. In the body names have no suffix."""
        names = STATE_NAMES[self._weights.kind]
        outside, self._nodes = self._nodes, []
        for gate in self._gates:
            weight, share = f"recurrent_{gate}{suffix}", f"x_{gate}"
            self._weight(weight, self._of_gate(recurrent, gate))
            if self._has_inner_bias(gate) and layer.bias is not None:
                share = f"inner_bias_{gate}{suffix}"
                self._weight(share, self._of_gate(layer.bias, gate))
            self._add("Gemm", ["h", weight, share], [f"sum_{gate}"])
        getattr(self, f"_{self._weights.kind}")()
        self._add("Identity", ["next_h"], ["h_here"])
        shape: list[str | int] = ["batch", self._hidden]
        body = helper.make_graph(
            self._nodes,
            "step",
            inputs=[_float_info(name, shape) for name in (*names, *(f"x_{gate}" for gate in self._gates))],
            outputs=[_float_info(name, shape) for name in (*(f"next_{name}" for name in names), "h_here")],
        )
        self._nodes = outside
        self._add(
            "Scan",
            [*(f"{name}{suffix}" for name in names), *(f"input_{gate}{suffix}" for gate in self._gates)],
            [*(f"{name}{suffix}_next" for name in names), f"h_all{suffix}"],
            body=body,
            num_scan_inputs=len(self._gates),
        )

    def _elman(self) -> None:
        self._add("Tanh", ["sum_h"], ["next_h"])

    def _gru(self) -> None:
        self._add("Sigmoid", ["sum_r"], ["r"])
        self._add("Sigmoid", ["sum_z"], ["z"])
        self._add("Mul", ["r", "sum_n"], ["reset"])
        self._add("Add", ["x_n", "reset"], ["new"])
        self._add("Tanh", ["new"], ["n"])
        self._add("Sub", ["h", "n"], ["change"])
        self._add("Mul", ["z", "change"], ["kept"])
        self._add("Add", ["n", "kept"], ["next_h"])

    def _lstm(self) -> None:
        for gate in "ifo":
            self._add("Sigmoid", [f"sum_{gate}"], [gate])
        self._add("Tanh", ["sum_g"], ["g"])
        self._add("Mul", ["f", "c"], ["kept"])
        self._add("Mul", ["i", "g"], ["added"])
        self._add("Add", ["kept", "added"], ["next_c"])
        self._add("Tanh", ["next_c"], ["squashed"])
        self._add("Mul", ["o", "squashed"], ["next_h"])

    def _readout(self, h_all: str) -> None:
        self._weight("readout", self._weights.readout)
        self._weight("readout_bias", self._weights.readout_bias)
        self._add("MatMul", [h_all, "readout"], ["product"])
        self._add("Add", ["product", "readout_bias"], ["logits"])

    def _surprise(self, h: str) -> None:
        """token_log_prob_t = log_softmax(W_hy h_(t-1) + c)[token_t], if it is wanted."""
        outside, self._nodes = self._nodes, []
        self._constant("time_axis", [0])
        self._constant("first", [0])
        self._constant("before_last", [-1])
        self._constant("last_axis", [2])
        self._add("Gemm", [h, "readout", "readout_bias"], ["logits_given"])
        self._add("Unsqueeze", ["logits_given", "time_axis"], ["logits_first"])
        self._add("Slice", ["logits", "first", "before_last", "time_axis"], ["logits_rest"])
        self._add("Concat", ["logits_first", "logits_rest"], ["logits_before"], axis=0)
        self._add("LogSoftmax", ["logits_before"], ["log_probs_before"], axis=2)
        self._add("Unsqueeze", ["token", "last_axis"], ["token_column"])
        self._add("GatherElements", ["log_probs_before", "token_column"], ["chosen"], axis=2)
        self._add("Squeeze", ["chosen", "last_axis"], ["surprise"])
        wanted, self._nodes = self._nodes, []
        self._add("Shape", ["token"], ["token_shape"])
        self._add("ConstantOfShape", ["token_shape"], ["zeros"])
        unwanted, self._nodes = self._nodes, outside
        self.initializers.append(numpy_helper.from_array(np.array(True), SWITCH))
        self._add(
            "If",
            [SWITCH],
            ["token_log_prob"],
            then_branch=helper.make_graph(
                wanted, "wanted", [], [_float_info("surprise", ["time", "batch"])]
            ),
            else_branch=helper.make_graph(
                unwanted, "unwanted", [], [_float_info("zeros", ["time", "batch"])]
            ),
        )

    def _has_inner_bias(self, gate: str) -> bool:
        """Whether the bias goes to the state's share alone: the reset gate of a GRU scales it."""
        return self._weights.kind == "gru" and gate == "n"

    def _outer_bias(self, layer: Layer, gate: str) -> NDArray[np.float32]:
        if layer.bias is None or self._has_inner_bias(gate):
            return np.zeros(self._hidden, np.float32)
        return self._of_gate(layer.bias, gate)

    def _of_gate(self, values: NDArray[np.float32], gate: str) -> NDArray[np.float32]:
        start = self._gates.index(gate) * self._hidden
        return values[..., start : start + self._hidden]

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _constant(self, name: str, values: int | list[int]) -> None:
        self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))

    def _weight(self, name: str, values: Any) -> None:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
