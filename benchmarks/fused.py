"""The same networks with ONNX's own recurrent operators, to see whether ours could be faster.

These operators multiply their input by its weights themselves, so a token goes in as a one-hot vector; ours
look it up. token_log_prob is left out, as it is where nobody asks for it.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.graph import GATES, IR_VERSION, OPSET, STATE_NAMES, Layer, Weights

_OPERATORS = {"elman": "RNN", "gru": "GRU", "lstm": "LSTM"}
_GATES = {"elman": "h", "gru": "zrn", "lstm": "iofg"}
"""In the order of the operators."""


def build_fused(weights: Weights) -> onnx.ModelProto:
    """Builds a graph that computes what `build_graph` does, without token_log_prob."""
    hidden, vocabulary = weights.readout.shape
    builder = _Builder(weights)
    states = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", hidden])
        for name in weights.state_names
    ]
    next_states = [
        helper.make_tensor_value_info(f"{name}_next", TensorProto.FLOAT, ["batch", hidden])
        for name in weights.state_names
    ]
    graph = helper.make_graph(
        builder.nodes,
        f"{weights.kind}-fused",
        inputs=[helper.make_tensor_value_info("token", TensorProto.INT64, ["time", "batch"]), *states],
        outputs=[
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["time", "batch", vocabulary]),
            *next_states,
        ],
        initializer=builder.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


class _Builder:
    """Collects nodes and weights."""

    def __init__(self, weights: Weights) -> None:
        self._kind = weights.kind
        self._hidden = len(weights.readout)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [
            numpy_helper.from_array(np.array([axis], np.int64), name)
            for axis, name in ((0, "first_axis"), (1, "second_axis"))
        ]
        self._weight("one_hot", np.eye(len(weights.layers[0].inputs)))
        self._add("Gather", ["one_hot", "token"], ["below"])
        below = "below"
        for number, layer in enumerate(weights.layers):
            below = self._layer(layer, str(number + 1) if number else "", below)
        self._weight("readout", weights.readout)
        self._weight("readout_bias", weights.readout_bias)
        self._add("MatMul", [below, "readout"], ["product"])
        self._add("Add", ["product", "readout_bias"], ["logits"])

    def _layer(self, layer: Layer, suffix: str, below: str) -> str:
        assert layer.recurrent is not None, "bug: a network without memory has no such operator"
        assert layer.bias is not None, "bug: a network without memory has no such operator"
        bias = self._ordered(layer.bias)
        self._weight(f"W{suffix}", self._ordered(layer.inputs).T[np.newaxis])
        self._weight(f"R{suffix}", self._ordered(layer.recurrent).T[np.newaxis])
        self._weight(f"B{suffix}", np.concatenate([np.zeros_like(bias), bias])[np.newaxis])
        names = [f"{name}{suffix}" for name in STATE_NAMES[self._kind]]
        for name in names:
            self._add("Unsqueeze", [name, "first_axis"], [f"{name}_given"])
        self._add(
            _OPERATORS[self._kind],
            [below, f"W{suffix}", f"R{suffix}", f"B{suffix}", "", *(f"{name}_given" for name in names)],
            [f"all{suffix}", *(f"{name}_left" for name in names)],
            hidden_size=self._hidden,
            **({"linear_before_reset": 1} if self._kind == "gru" else {}),
        )
        for name in names:
            self._add("Squeeze", [f"{name}_left", "first_axis"], [f"{name}_next"])
        self._add("Squeeze", [f"all{suffix}", "second_axis"], [f"h_all{suffix}"])
        return f"h_all{suffix}"

    def _ordered(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = dict(zip(GATES[self._kind], np.split(values, len(GATES[self._kind]), axis=-1), strict=True))
        return np.concatenate([parts[gate] for gate in _GATES[self._kind]], axis=-1)

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _weight(self, name: str, values: NDArray[Any]) -> None:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
