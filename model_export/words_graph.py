"""Builds the step graph of a network over subwords, node by node, as `graph` does for bytes.

The table of embeddings is most of the file and stands there once: the input looks rows up in it, the
readout multiplies by it. Weights are kept as float16 and cast when the graph is loaded, which halves the
file; the training has rounded them, so that nothing is lost. Knows no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.contract import SWITCH
from model_export.graph import IR_VERSION, OPSET

GATES = ("r", "z", "n")

Weights = Mapping[str, NDArray[np.float32]]
"""Of a GRU between tied embeddings, products written x W:

    embedding      (vocabulary, width)
    inputs         (width, 3 * hidden), gates r, z, n
    inputs_bias    (3 * hidden,)
    recurrent      (hidden, 3 * hidden)
    recurrent_bias (3 * hidden,)
    projection     (hidden, width)
    readout_bias   (vocabulary,)
"""


def build_words_graph(weights: Weights) -> onnx.ModelProto:
    """Builds the step graph: T steps in one call, for any T >= 1.

    Inputs are token (time, batch), h (batch, hidden) and the optional switch; outputs logits (time, batch,
    vocabulary), token_log_prob (time, batch) and h_next.
    """
    vocabulary = len(weights["embedding"])
    hidden = len(weights["recurrent"])
    builder = _Builder(weights)
    graph = helper.make_graph(
        builder.build(),
        "words-step",
        inputs=[
            helper.make_tensor_value_info("token", TensorProto.INT64, ["time", "batch"]),
            _float_info("h", ["batch", hidden]),
            helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, []),
        ],
        outputs=[
            _float_info("logits", ["time", "batch", vocabulary]),
            _float_info("token_log_prob", ["time", "batch"]),
            _float_info("h_next", ["batch", hidden]),
        ],
        initializer=builder.initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="holdfast",
    )


def _float_info(name: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Builder:
    """Collects nodes and weights; each method adds the nodes of one part."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._hidden = len(weights["recurrent"])
        self._nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def build(self) -> list[onnx.NodeProto]:
        self._weight("embedding", self._weights["embedding"])
        self._weight("projection", self._weights["projection"])
        self._weight("readout_bias", self._weights["readout_bias"])
        self._add("Transpose", ["embedding"], ["embedding_turned"], perm=[1, 0])
        self._input_gates()
        self._scan()
        self._readout("h_all", "logits")
        self._surprise()
        return self._nodes

    def _input_gates(self) -> None:
        self._add("Gather", ["embedding", "token"], ["vectors"])
        for gate in GATES:
            self._weight(f"inputs_{gate}", self._of_gate("inputs", gate))
            self._weight(f"inputs_bias_{gate}", self._of_gate("inputs_bias", gate))
            self._add("MatMul", ["vectors", f"inputs_{gate}"], [f"product_{gate}"])
            self._add("Add", [f"product_{gate}", f"inputs_bias_{gate}"], [f"input_{gate}"])

    def _scan(self) -> None:
        """h_t = n + z * (h - n) with n = tanh(x_n + r * (U_n h + b_n)), over the time axis."""
        for gate in GATES:
            self._weight(f"recurrent_{gate}", self._of_gate("recurrent", gate))
            self._weight(f"recurrent_bias_{gate}", self._of_gate("recurrent_bias", gate))
        outside, self._nodes = self._nodes, []
        for gate in GATES:
            inputs = ["h_before", f"recurrent_{gate}", f"recurrent_bias_{gate}"]
            self._add("Gemm", inputs, [f"sum_{gate}"])
        for gate in "rz":
            self._add("Add", [f"x_{gate}", f"sum_{gate}"], [f"both_{gate}"])
            self._add("Sigmoid", [f"both_{gate}"], [gate])
        self._add("Mul", ["r", "sum_n"], ["reset"])
        self._add("Add", ["x_n", "reset"], ["new"])
        self._add("Tanh", ["new"], ["n"])
        self._add("Sub", ["h_before", "n"], ["change"])
        self._add("Mul", ["z", "change"], ["kept"])
        self._add("Add", ["n", "kept"], ["h_after"])
        self._add("Identity", ["h_after"], ["h_here"])
        shape: list[str | int] = ["batch", self._hidden]
        body = helper.make_graph(
            self._nodes,
            "step",
            inputs=[_float_info(name, shape) for name in ("h_before", *(f"x_{gate}" for gate in GATES))],
            outputs=[_float_info(name, shape) for name in ("h_after", "h_here")],
        )
        self._nodes = outside
        given = ["h", *(f"input_{gate}" for gate in GATES)]
        self._add("Scan", given, ["h_next", "h_all"], body=body, num_scan_inputs=len(GATES))

    def _readout(self, h: str, target: str) -> None:
        self._add("MatMul", [h, "projection"], [f"{target}_vector"])
        self._add("MatMul", [f"{target}_vector", "embedding_turned"], [f"{target}_product"])
        self._add("Add", [f"{target}_product", "readout_bias"], [target])

    def _surprise(self) -> None:
        """token_log_prob_t = log_softmax(logits_(t-1))[token_t], if it is wanted."""
        outside, self._nodes = self._nodes, []
        for name, values in (("zero", [0]), ("minus_one", [-1]), ("two", [2])):
            self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
        self._readout("h", "logits_given")
        self._add("Unsqueeze", ["logits_given", "zero"], ["logits_first"])
        self._add("Slice", ["logits", "zero", "minus_one", "zero"], ["logits_rest"])
        self._add("Concat", ["logits_first", "logits_rest"], ["logits_before"], axis=0)
        self._add("LogSoftmax", ["logits_before"], ["log_probs_before"], axis=2)
        self._add("Unsqueeze", ["token", "two"], ["token_column"])
        self._add("GatherElements", ["log_probs_before", "token_column"], ["chosen"], axis=2)
        self._add("Squeeze", ["chosen", "two"], ["surprise"])
        wanted, self._nodes = self._nodes, []
        self._add("Shape", ["token"], ["token_shape"])
        self._add("ConstantOfShape", ["token_shape"], ["zeros"])
        unwanted, self._nodes = self._nodes, outside
        self.initializers.append(numpy_helper.from_array(np.array(True), SWITCH))
        shape: list[str | int] = ["time", "batch"]
        self._add(
            "If",
            [SWITCH],
            ["token_log_prob"],
            then_branch=helper.make_graph(wanted, "wanted", [], [_float_info("surprise", shape)]),
            else_branch=helper.make_graph(unwanted, "unwanted", [], [_float_info("zeros", shape)]),
        )

    def _of_gate(self, name: str, gate: str) -> NDArray[np.float32]:
        start = GATES.index(gate) * self._hidden
        return self._weights[name][..., start : start + self._hidden]

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _weight(self, name: str, values: NDArray[np.float32]) -> None:
        """Keeps a weight as float16; the cast is done once, when the graph is loaded."""
        half = numpy_helper.from_array(np.ascontiguousarray(values, np.float16), f"{name}_half")
        self.initializers.append(half)
        self._add("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)
