"""Builds a step graph from weights, node by node: no traced code, so no shape arithmetic is left in it.

A step of a cell is about ten operations and every one of them costs in serving. The graph has a time axis:
only what needs the state of the step before runs step by step, in a Scan; looking up the inputs and ranking
the outputs are one operation each for all tokens. Knows neither torch nor training.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 10

STATE_NAMES = {"feedforward": ("h",), "elman": ("h",), "gru": ("h",), "lstm": ("h", "c")}
"""Names of the state tensors by kind of network, h first."""


class Weights(NamedTuple):
    """What a network over a vocabulary has learnt; products are written x W, float32.

    Attributes:
        kind: `feedforward`, `elman`, `gru` or `lstm`.
        table: (vocabulary, gates * hidden): the input's share of each gate, by token.
        recurrent: (hidden, gates * hidden); None without memory.
        recurrent_bias: (gates * hidden,); None without memory.
        readout: (hidden, vocabulary).
        readout_bias: (vocabulary,).
    """

    kind: str
    table: NDArray[np.float32]
    recurrent: NDArray[np.float32] | None
    recurrent_bias: NDArray[np.float32] | None
    readout: NDArray[np.float32]
    readout_bias: NDArray[np.float32]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors, h first."""
        return STATE_NAMES[self.kind]


def build_graph(weights: Weights) -> onnx.ModelProto:
    """Builds the step graph: T steps in one call, for any T >= 1.

    Inputs are token (time, batch) and the states (batch, hidden); outputs logits (time, batch, vocabulary),
    token_log_prob (time, batch) and the next states.
    """
    builder = _GraphBuilder(weights)
    nodes = builder.build()
    hidden, vocabulary = weights.readout.shape
    states: list[tuple[str, list[str | int]]] = [
        (name, ["batch", hidden]) for name in weights.state_names
    ]
    graph = helper.make_graph(
        nodes,
        f"{weights.kind}-step",
        inputs=[
            helper.make_tensor_value_info("token", TensorProto.INT64, ["time", "batch"]),
            *(_float_info(name, shape) for name, shape in states),
        ],
        outputs=[
            _float_info("logits", ["time", "batch", vocabulary]),
            _float_info("token_log_prob", ["time", "batch"]),
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

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._hidden = len(weights.readout)
        self._nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def build(self) -> list[onnx.NodeProto]:
        self._weight("table", self._weights.table)
        self._add("Gather", ["table", "token"], ["input_gates"])
        if self._weights.recurrent is None:
            self._feedforward()
        else:
            self._scan()
        self._readout()
        self._surprise()
        return self._nodes

    def _feedforward(self) -> None:
        self._add("Tanh", ["input_gates"], ["h_all"])
        self._constant("last", -1)
        self._add("Gather", ["h_all", "last"], ["h_next"], axis=0)

    def _scan(self) -> None:
        """Runs the cell over the time axis of input_gates; h_all gets h after every token."""
        self._weight("recurrent", self._weights.recurrent)
        self._weight("recurrent_bias", self._weights.recurrent_bias)
        states = list(self._weights.state_names)
        last_states = [f"{name}_next" for name in states]
        outside, self._nodes = self._nodes, []
        self._add("Gemm", ["h", "recurrent", "recurrent_bias"], ["hidden_gates"])
        getattr(self, f"_{self._weights.kind}")()
        self._add("Identity", ["h_next"], ["h_here"])
        shape: list[str | int] = ["batch", self._hidden]
        body = helper.make_graph(
            self._nodes,
            "step",
            inputs=[
                *(_float_info(name, shape) for name in states),
                _float_info("step_gates", ["batch", self._weights.table.shape[1]]),
            ],
            outputs=[_float_info(name, shape) for name in [*last_states, "h_here"]],
        )
        self._nodes = outside
        inputs, outputs = [*states, "input_gates"], [*last_states, "h_all"]
        self._add("Scan", inputs, outputs, body=body, num_scan_inputs=1)

    def _readout(self) -> None:
        """Logits of the state given and of the state after every token: (time + 1, batch, 256)."""
        self._weight("readout", self._weights.readout)
        self._weight("readout_bias", self._weights.readout_bias)
        self._constant("time_axis", [0])
        self._constant("first", [0])
        self._constant("second", [1])
        self._constant("before_last", [-1])
        self._constant("end", [np.iinfo(np.int64).max])
        self._add("Unsqueeze", ["h", "time_axis"], ["h_given"])
        self._add("Concat", ["h_given", "h_all"], ["h_every"], axis=0)
        self._add("MatMul", ["h_every", "readout"], ["product"])
        self._add("Add", ["product", "readout_bias"], ["logits_every"])
        self._add("Slice", ["logits_every", "second", "end", "time_axis"], ["logits"])
        self._add("Slice", ["logits_every", "first", "before_last", "time_axis"], ["logits_before"])

    def _surprise(self) -> None:
        """token_log_prob_t = log_softmax(W_hy h_(t-1) + c)[token_t]."""
        self._constant("last_axis", [2])
        self._add("LogSoftmax", ["logits_before"], ["log_probs_before"], axis=2)
        self._add("Unsqueeze", ["token", "last_axis"], ["token_column"])
        self._add("GatherElements", ["log_probs_before", "token_column"], ["chosen"], axis=2)
        self._add("Squeeze", ["chosen", "last_axis"], ["token_log_prob"])

    def _elman(self) -> None:
        self._add("Add", ["step_gates", "hidden_gates"], ["sum"])
        self._add("Tanh", ["sum"], ["h_next"])

    def _gru(self) -> None:
        size = self._hidden
        self._split("step_gates", [2 * size, size], ["input_rz", "input_n"])
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
        self._add("Add", ["step_gates", "hidden_gates"], ["sum"])
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

    def _constant(self, name: str, values: int | list[int]) -> None:
        self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))

    def _weight(self, name: str, values: Any) -> None:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
