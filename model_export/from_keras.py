"""Builds the whole-sequence ONNX graph of a Keras 3 network from its layers' weights, without keras.

Keras' own ONNX export writes a recurrent layer out token by token, and leaves the state of `stateful=True`
out; the weights say all there is to say. `to_step_graph` then makes a step graph of it. A network is a
chain: Embedding, causal Conv1D, SimpleRNN, GRU, LSTM, Dense, TimeDistributed(Dense), LayerNormalization,
BatchNormalization, Activation, and what does nothing once trained (Dropout, InputLayer). Stateful layers of
the network are reset while it is compared.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.surgery.value import Refused

OPSET, IR_VERSION = 20, 10
TOLERANCE = 1e-5
COMPARED = 16
"""Tokens of the comparison with the network itself."""

_OPS = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "softsign": "Softsign",
    "gelu": "Gelu", "elu": "Elu", "selu": "Selu", "mish": "Mish",
}  # fmt: skip
_CELL_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softplus": "Softplus",
                     "softsign": "Softsign", "hard_sigmoid": "HardSigmoid", "elu": "Elu"}  # fmt: skip
_IDLE = frozenset(
    {"InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout"}
)
_GATES = {"SimpleRNN": ("RNN", 1, (0,)), "GRU": ("GRU", 3, (0, 1, 2)), "LSTM": ("LSTM", 4, (0, 3, 1, 2))}
"""Layer -> ONNX operator, number of gates, and where ONNX has Keras' gates."""

Array = NDArray[np.float32]


def to_sequence_graph(network: Any) -> onnx.ModelProto:
    """Builds the graph, and compares it with the network on drawn tokens.

    Args:
        network: A built Keras network, a chain of layers over (batch, time) ids or (batch, time, width).

    Returns:
        A whole-sequence graph for `to_step_graph`.

    Raises:
        Refused: A layer has no counterpart here, or the graph differs from the network by more than 1e-5.
    """
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise Refused("the Keras network has several inputs or outputs; only a chain of layers is read")
    builder = _Builder()
    layers = list(network.layers)
    takes_ids = any(type(layer).__name__ == "Embedding" for layer in layers)
    width = None if takes_ids else int(network.inputs[0].shape[-1])
    for layer in layers:
        builder.layer(layer)
    leading: list[str | int] = ["batch", "time"]
    model = builder.model(leading, width)
    _compare(network, model, takes_ids, width, builder.vocabulary)
    return model


def _compare(network: Any, model: onnx.ModelProto, takes_ids: bool, width: int | None, size: int) -> None:
    rng = np.random.default_rng(5)
    rows = int(network.inputs[0].shape[0] or 2)  # stateful layers have a fixed batch
    shape = (rows, COMPARED)
    tokens = (
        rng.integers(0, size, shape)
        if takes_ids
        else rng.standard_normal((*shape, width or 1)).astype(np.float32)
    )
    fixed = network.inputs[0].shape[1]
    if fixed:
        tokens = tokens[:, : int(fixed)]
    for layer in network.layers:
        if getattr(layer, "stateful", False):
            layer.reset_states()
    expected = np.asarray(network.predict(tokens, batch_size=rows, verbose=0), np.float64)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = session.run(None, {"tokens": tokens.astype(np.int64) if takes_ids else tokens})[0]
    difference = float((np.abs(expected - given) / np.maximum(1.0, np.abs(expected))).max())
    if not difference <= TOLERANCE:
        raise Refused(
            f"the graph differs from the Keras network by {difference:.2g}, at most {TOLERANCE:g} is "
            "let through"
        )


class _Builder:
    """Collects nodes and weights, layer by layer; the tensor so far is (batch, time, width)."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._last = "tokens"
        self._has_time = True
        self._named = 0
        self.vocabulary = 0

    def model(self, leading: Sequence[str | int], width: int | None) -> onnx.ModelProto:
        kind = TensorProto.INT64 if width is None else TensorProto.FLOAT
        shape = [*leading, *([] if width is None else [width])]
        self._nodes.append(helper.make_node("Identity", [self._last], ["result"]))
        graph = helper.make_graph(
            self._nodes,
            "keras",
            [helper.make_tensor_value_info("tokens", kind, shape)],
            [onnx.ValueInfoProto(name="result")],
            self._weights,
        )
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )

    def layer(self, layer: Any) -> None:
        kind = type(layer).__name__
        rules: dict[str, Callable[[Any], None]] = {
            "Embedding": self._embedding,
            "Dense": self._dense,
            "TimeDistributed": lambda one: self.layer(one.layer),
            "LayerNormalization": self._normalisation,
            "BatchNormalization": self._batch_normalisation,
            "Conv1D": self._convolution,
            "Activation": lambda one: self._activation(one.activation),
            **dict.fromkeys(_GATES, self._recurrent),
        }
        if kind == "Bidirectional":
            raise Refused(
                f"layer {layer.name!r} is Bidirectional: it reads the tokens to come; train it forward only"
            )
        if kind not in rules and kind not in _IDLE:
            raise Refused(
                f"layer {layer.name!r} is {kind}, which has no counterpart here; known are "
                f"{', '.join(sorted([*rules, *_IDLE]))}"
            )
        if kind in rules:
            rules[kind](layer)

    def _embedding(self, layer: Any) -> None:
        if getattr(layer, "mask_zero", False):
            raise Refused(f"layer {layer.name!r} masks id 0: leave mask_zero out, a stream has no padding")
        (table,) = layer.get_weights()
        self.vocabulary = len(table)
        self._add("Gather", [self._weight(table), self._last], axis=0)

    def _dense(self, layer: Any) -> None:
        kernel, *bias = layer.get_weights()
        self._add("MatMul", [self._last, self._weight(kernel)])
        if bias:
            self._add("Add", [self._last, self._weight(bias[0])])
        self._activation(layer.activation)

    def _normalisation(self, layer: Any) -> None:
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        if axes not in ([-1], [2 if self._has_time else 1]):
            raise Refused(f"layer {layer.name!r} normalises over axis {axes}, expected the last one")
        held = layer.get_weights()
        width = len(held[0]) if held else 0
        if not width:
            raise Refused(f"layer {layer.name!r} has neither scale nor center")
        scale = held.pop(0) if layer.scale else np.ones(width)
        names = [self._weight(scale), *([self._weight(held[0])] if layer.center else [])]
        self._add("LayerNormalization", [self._last, *names], axis=-1, epsilon=float(layer.epsilon))

    def _batch_normalisation(self, layer: Any) -> None:
        """With the figures of the training it is a product and a sum."""
        held = layer.get_weights()
        scale = held.pop(0) if layer.scale else 1.0
        shift = held.pop(0) if layer.center else 0.0
        mean, variance = held
        factor = scale / np.sqrt(variance + layer.epsilon)
        self._add("Mul", [self._last, self._weight(factor)])
        self._add("Add", [self._last, self._weight(shift - mean * factor)])

    def _convolution(self, layer: Any) -> None:
        (size,), (dilation,), (stride,) = layer.kernel_size, layer.dilation_rate, layer.strides
        if layer.padding != "causal" and size > 1:
            raise Refused(
                f"layer {layer.name!r} has padding {layer.padding!r}, which looks ahead; train it "
                "with 'causal'"
            )
        if stride != 1 or not self._has_time:
            raise Refused(
                f"layer {layer.name!r} has stride {stride}: one output for several tokens cannot stream"
            )
        kernel, *bias = layer.get_weights()
        names = [self._weight(np.transpose(kernel, (2, 1, 0))), *(self._weight(one) for one in bias)]
        self._add("Transpose", [self._last], perm=[0, 2, 1])
        back = (size - 1) * dilation
        options = {"dilations": [dilation], "pads": [back, 0], "group": layer.groups}
        self._add("Conv", [self._last, *names], **options)
        self._add("Transpose", [self._last], perm=[0, 2, 1])
        self._activation(layer.activation)

    def _activation(self, function: Any) -> None:
        name = getattr(function, "__name__", type(function).__name__).lower()
        if name == "linear":
            return
        if name in ("softmax", "log_softmax"):
            self._add("Softmax" if name == "softmax" else "LogSoftmax", [self._last], axis=-1)
        elif name == "silu":
            before = self._last
            self._add("Sigmoid", [before])
            self._add("Mul", [before, self._last])
        elif name == "hard_sigmoid":
            self._add("HardSigmoid", [self._last], alpha=1 / 6, beta=0.5)
        elif name in _OPS:
            self._add(_OPS[name], [self._last])
        else:
            raise Refused(
                f"activation {name!r} has no counterpart here; known are {', '.join(sorted(_OPS))}"
            )

    def _recurrent(self, layer: Any) -> None:
        op, gates, order = _GATES[type(layer).__name__]
        if getattr(layer, "go_backwards", False):
            raise Refused(
                f"layer {layer.name!r} has go_backwards: it starts with the last token; train it forward"
            )
        if not self._has_time:
            raise Refused(
                f"layer {layer.name!r} reads one value for all tokens; return_sequences is missing "
                "before it"
            )
        kernel, recurrent, *bias = layer.get_weights()
        units = len(recurrent)
        outer, inner = _biases(bias, gates * units)
        inputs = [
            self._transposed(),
            self._weight(_gates(kernel.T, order, units)[np.newaxis]),
            self._weight(_gates(recurrent.T, order, units)[np.newaxis]),
            self._weight(
                np.concatenate([_gates(outer, order, units), _gates(inner, order, units)])[np.newaxis]
            ),
        ]
        options: dict[str, Any] = {"hidden_size": units, **_activations(op, layer)}
        if op == "GRU":
            options["linear_before_reset"] = int(layer.reset_after)
        every, last = self._name(), self._name()
        self._nodes.append(helper.make_node(op, inputs, [every, last], **options))
        if layer.return_sequences:
            self._add("Squeeze", [every, self._integers([1])])
            self._add("Transpose", [self._last], perm=[1, 0, 2])
        else:
            self._add("Squeeze", [last, self._integers([0])])
            self._has_time = False

    def _transposed(self) -> str:
        self._add("Transpose", [self._last], perm=[1, 0, 2])
        return self._last

    def _add(self, op: str, inputs: list[str], **attributes: Any) -> None:
        name = self._name()
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self._last = name

    def _name(self) -> str:
        self._named += 1
        return f"tensor_{self._named}"

    def _weight(self, array: Any) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def _integers(self, numbers: list[int]) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name


def _gates(values: Any, order: tuple[int, ...], units: int) -> Array:
    """Returns the rows of gates in ONNX's order."""
    parts = np.asarray(values, np.float32).reshape(len(order), units, *np.shape(values)[1:])
    return parts[list(order)].reshape(np.shape(values))


def _biases(bias: list[Any], size: int) -> tuple[Array, Array]:
    """Returns the biases of the input's share and of the state's; a GRU with reset_after has both."""
    zeros = np.zeros(size, np.float32)
    if not bias:
        return zeros, zeros
    if np.ndim(bias[0]) == 2:
        return np.asarray(bias[0][0], np.float32), np.asarray(bias[0][1], np.float32)
    return np.asarray(bias[0], np.float32), zeros


def _activations(op: str, layer: Any) -> dict[str, Any]:
    """Returns a cell's activations as attributes; none where they are ONNX's own."""
    inner = layer.activation.__name__
    names = [inner] if op == "RNN" else [layer.recurrent_activation.__name__, inner]
    names += [inner] if op == "LSTM" else []
    if names == {"RNN": ["tanh"], "GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}[op]:
        return {}
    unknown = [name for name in names if name not in _CELL_ACTIVATIONS]
    if unknown:
        raise Refused(f"layer {layer.name!r}: a cell cannot have activation {unknown[0]!r}")
    if "hard_sigmoid" in names:
        alphas = [1 / 6 for name in names if name == "hard_sigmoid"]
        return {
            "activations": [_CELL_ACTIVATIONS[name] for name in names],
            "activation_alpha": alphas,
            "activation_beta": [0.5 for _ in alphas],
        }
    return {"activations": [_CELL_ACTIVATIONS[name] for name in names]}
