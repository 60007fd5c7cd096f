"""Step graphs built from nodes: dense layers and gated recurrent units of ONNX, for networks over anything.

`graph` builds byte networks, whose inputs are rows of a table; here the front is whatever the task needs.
Knows no torch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.graph import IR_VERSION, OPSET


class Dense(NamedTuple):
    """A linear layer: x W + b.

    Attributes:
        weight: float32 (inputs, outputs).
        bias: float32 (outputs,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class GruWeights(NamedTuple):
    """Of one layer, in ONNX's order of gates (update, reset, new), the reset gate after the product.

    Attributes:
        inputs: float32 (1, 3 * hidden, width).
        recurrent: float32 (1, 3 * hidden, hidden).
        bias: float32 (1, 6 * hidden): of the input's share, then of the state's.
    """

    inputs: NDArray[np.float32]
    recurrent: NDArray[np.float32]
    bias: NDArray[np.float32]


class Nodes:
    """Collects nodes, weights, inputs and outputs of a graph."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, axes: Sequence[str | int], kind: int = TensorProto.FLOAT) -> str:
        """Declares an input of the graph; returns its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, axes))
        return name

    def output(self, name: str, axes: Sequence[str | int]) -> None:
        """Declares a float32 tensor an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))

    def weight(self, name: str, values: Any, *, is_double: bool = False) -> str:
        """Adds a constant, int64 or float32 as it comes, or float64; returns its name."""
        array = np.asarray(values)
        kind = np.int64 if array.dtype.kind == "i" else np.float64 if is_double else np.float32
        self._weights.append(numpy_helper.from_array(np.array(array, kind, order="C"), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns its name."""
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def dense(self, values: str, layer: Dense, output: str) -> str:
        """Adds a linear layer over the last axis."""
        product = self.add(
            "MatMul", [values, self.weight(f"{output}_weight", layer.weight)], f"{output}_product"
        )
        return self.add("Add", [product, self.weight(f"{output}_bias", layer.bias)], output)

    def gru(self, values: str, weights: GruWeights) -> str:
        """Adds a recurrent layer with the state `h`, axes (1, batch, hidden).

        Args:
            values: What it reads, (time, batch, width).
            weights: What it has learnt.

        Returns:
            Name of its h after every token, (time, batch, hidden).
        """
        hidden = weights.recurrent.shape[2]
        state = self.input("h", [1, "batch", hidden])
        names = [self.weight(f"gru_{name}", value) for name, value in weights._asdict().items()]
        self._nodes.append(
            helper.make_node(
                "GRU",
                [values, *names, "", state],
                ["h_directions", "h_next"],
                name="gru",
                hidden_size=hidden,
                linear_before_reset=1,
            )
        )
        axis = self.weight("direction_axis", [1])
        return self.add("Squeeze", ["h_directions", axis], "h_all")

    def model(self, name: str) -> onnx.ModelProto:
        """Returns the graph; a state's successor is the output after the others.

        Raises:
            onnx.checker.ValidationError: The nodes do not make a graph.
        """
        states = [info for info in self._inputs if info.name == "h"]
        for info in states:
            axes = [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim]
            self.output("h_next", axes)
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._weights)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="holdfast"
        )
        onnx.checker.check_model(model, full_check=True)
        return model
