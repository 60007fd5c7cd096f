"""Makes a Scan over time of every node `holdfast::Recurrent` of a traced graph.

Only what needs the state of the token before runs step by step: the input's share of each gate is one
product for all tokens. A gate is one Gemm that adds the state's share to it, as in `graph`, where that was
measured to be fastest. Knows no torch: weights are arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_GATES = {"tanh": ("h",), "relu": ("h",), "gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}


class LayerWeights(NamedTuple):
    """One layer; products are written x W.

    Attributes:
        kind: `tanh`, `relu`, `gru` or `lstm`.
        inputs: (width, gates * hidden).
        recurrent: (hidden or its projection, gates * hidden).
        input_bias: (gates * hidden,).
        recurrent_bias: (gates * hidden,).
        projection: (hidden, projection), or None.
    """

    kind: str
    inputs: NDArray[Any]
    recurrent: NDArray[Any]
    input_bias: NDArray[Any]
    recurrent_bias: NDArray[Any]
    projection: NDArray[Any] | None


def expand(model: onnx.ModelProto, domain: str, layers: Mapping[str, LayerWeights]) -> None:
    """Replaces the nodes of a domain, in place.

    Args:
        model: A traced graph.
        domain: Of the nodes.
        layers: The weights by the attribute `key` of a node.
    """
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, NDArray[Any]] = {}
    for node in model.graph.node:
        if node.domain != domain:
            nodes.append(node)
            continue
        key = helper.get_node_attr_value(node, "key").decode()
        made = _Layer(f"{key}@{len(nodes)}", layers[key], node)
        nodes += made.nodes
        weights.update(made.weights)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    kept = [entry for entry in model.opset_import if entry.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)


class _Layer:
    """The nodes of one layer; those of the Scan's body have `body` in their names."""

    def __init__(self, prefix: str, layer: LayerWeights, node: onnx.NodeProto) -> None:
        self._prefix = prefix
        self._layer = layer
        self._gates = _GATES[layer.kind]
        self._hidden = layer.recurrent.shape[1] // len(self._gates)
        self.weights: dict[str, NDArray[Any]] = {}
        self.nodes: list[onnx.NodeProto] = []
        x, *states = node.input
        shares = [self._share(gate, x) for gate in self._gates]
        body = self._body()
        self._add(
            "Scan",
            [*states, *shares],
            [*node.output[1:], node.output[0]],
            body=body,
            num_scan_inputs=len(shares),
        )

    def _share(self, gate: str, x: str) -> str:
        """The input's share of a gate for all tokens, with every bias that may be added there."""
        bias = self._of_gate(self._layer.input_bias, gate)
        if not self._is_inner(gate):
            bias = bias + self._of_gate(self._layer.recurrent_bias, gate)
        product, share = self._name(f"product_{gate}"), self._name(f"input_{gate}")
        self._add(
            "MatMul",
            [x, self._weight(f"inputs_{gate}", self._of_gate(self._layer.inputs, gate))],
            [product],
        )
        self._add("Add", [product, self._weight(f"bias_{gate}", bias)], [share])
        return share

    def _body(self) -> onnx.GraphProto:
        outside, self.nodes = self.nodes, []
        for gate in self._gates:
            weight = self._weight(f"recurrent_{gate}", self._of_gate(self._layer.recurrent, gate))
            added = self._body_name(f"x_{gate}")
            if self._is_inner(gate):
                added = self._weight(f"inner_{gate}", self._of_gate(self._layer.recurrent_bias, gate))
            self._add("Gemm", [self._body_name("h"), weight, added], [self._body_name(f"sum_{gate}")])
        getattr(self, f"_{self._layer.kind}")()
        self._step("Identity", ["next_h"], "here")
        nodes, self.nodes = self.nodes, outside
        states = ("h", "c") if self._layer.kind == "lstm" else ("h",)
        return helper.make_graph(
            nodes,
            "step",
            [self._info(name) for name in (*states, *(f"x_{gate}" for gate in self._gates))],
            [self._info(name) for name in (*(f"next_{state}" for state in states), "here")],
        )

    def _tanh(self) -> None:
        self._step("Tanh", ["sum_h"], "next_h")

    def _relu(self) -> None:
        self._step("Relu", ["sum_h"], "next_h")

    def _gru(self) -> None:
        self._step("Sigmoid", ["sum_r"], "r")
        self._step("Sigmoid", ["sum_z"], "z")
        self._step("Mul", ["r", "sum_n"], "reset")
        self._step("Add", ["x_n", "reset"], "new")
        self._step("Tanh", ["new"], "n")
        self._step("Sub", ["h", "n"], "change")
        self._step("Mul", ["z", "change"], "kept")
        self._step("Add", ["n", "kept"], "next_h")

    def _lstm(self) -> None:
        for gate in "ifo":
            self._step("Sigmoid", [f"sum_{gate}"], gate)
        self._step("Tanh", ["sum_g"], "g")
        self._step("Mul", ["f", "c"], "kept")
        self._step("Mul", ["i", "g"], "added")
        self._step("Add", ["kept", "added"], "next_c")
        self._step("Tanh", ["next_c"], "squashed")
        if self._layer.projection is None:
            self._step("Mul", ["o", "squashed"], "next_h")
            return
        self._step("Mul", ["o", "squashed"], "whole_h")
        weight = self._weight("projection", self._layer.projection)
        self._add("MatMul", [self._body_name("whole_h"), weight], [self._body_name("next_h")])

    def _is_inner(self, gate: str) -> bool:
        """Whether the state's bias stays with the state: the reset gate of a GRU scales it."""
        return self._layer.kind == "gru" and gate == "n"

    def _of_gate(self, values: NDArray[Any], gate: str) -> NDArray[Any]:
        start = self._gates.index(gate) * self._hidden
        return values[..., start : start + self._hidden]

    def _info(self, name: str) -> onnx.ValueInfoProto:
        is_projected = name in ("h", "next_h", "here") and self._layer.projection is not None
        width = self._layer.recurrent.shape[0] if is_projected else self._hidden
        kind = helper.np_dtype_to_tensor_dtype(self._layer.recurrent.dtype)
        return helper.make_tensor_value_info(self._body_name(name), kind, ["batch", width])

    def _step(self, kind: str, inputs: list[str], output: str) -> None:
        self._add(kind, [self._body_name(name) for name in inputs], [self._body_name(output)])

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _weight(self, name: str, values: NDArray[Any]) -> str:
        self.weights[self._name(name)] = np.ascontiguousarray(values)
        return self._name(name)

    def _name(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _body_name(self, name: str) -> str:
        return f"{self._prefix}/body/{name}"
