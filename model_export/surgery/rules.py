"""Which rule an operator has, and the walk over a graph's nodes."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from model_export.surgery import bodies, cells, elementwise, mixing, picking, shaping, windows
from model_export.surgery.axes import BATCH, TIME
from model_export.surgery.translation import Rule, Translation, attribute, constant, label
from model_export.surgery.value import Refused, Value

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_LOOKS = {
    "ReverseSequence": "turns the tokens round, so it starts with those to come; train it forward",
    "Range": "counts the tokens of a run from 0, which depends on how a stream is cut into chunks; "
    "keep a counter as "
    "a state",
    "Attention": "holds every token against every other; keep a ring of keys and values and a "
    "counter as states",
    "MultiHeadAttention": "holds every token against every other; keep a ring of keys and values and "
    "a counter as "
    "states",
    "DynamicQuantizeLinear": "has one scale for all tokens and rows of a run, so rows see one "
    "another; quantise with "
    "holdfast model export --int8, whose scales are fixed",
    "DynamicQuantizeLSTM": "has one scale for all tokens and rows of a run, so rows see one another; "
    "quantise with "
    "holdfast model export --int8, whose scales are fixed",
    "NonZero": "gives as many entries as the values say, so a stream has no fixed shape; use Where",
    "Unique": "gives as many entries as the values say, so a stream has no fixed shape",
    "Compress": "gives as many entries as the values say, so a stream has no fixed shape; use Where",
}


def _constant(translation: Translation, node: onnx.NodeProto, _: Sequence[Value | None]) -> list[Value]:
    translation.keep(node)
    for entry in node.attribute:
        if entry.name == "value":
            return [constant(numpy_helper.to_array(entry.t))]
        if entry.name in ("value_int", "value_ints"):
            return [constant(np.array(attribute(node, entry.name), np.int64))]
        if entry.name in ("value_float", "value_floats"):
            return [constant(np.array(attribute(node, entry.name), np.float32))]
    raise Refused(f"{label(node)} is no constant of numbers")


def _dropout(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """Lets all pass, as it does once a network is trained."""
    training = values[2] if len(values) > 2 else None
    if training is not None and not (training.data is not None and not bool(np.any(training.data))):
        raise Refused(f"{label(node)} is in training mode and draws random numbers; export after eval()")
    value = shaping.first_of(node, values)
    translation.nodes.append(onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]]))
    return [value, *(Value(value.axes, value.reach) for _ in node.output[1:])]


def _branch(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """Takes the branch that a constant chooses."""
    condition = values[0]
    if condition is None or condition.data is None:
        raise Refused(
            f"{label(node)} chooses while the graph runs; write it as Where, so that each row has its own"
        )
    chosen: onnx.GraphProto = attribute(
        node, "then_branch" if bool(condition.data.reshape(-1)[0]) else "else_branch"
    )
    for weight in chosen.initializer:
        translation.values[weight.name] = constant(numpy_helper.to_array(weight))
        translation.weights[weight.name] = weight
    walk(translation, chosen.node)
    for inner, outer in zip(chosen.output, node.output, strict=True):
        translation.nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    return [translation.here(inner.name) for inner in chosen.output]


def _scan(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    return bodies.scan(translation, node, values, walk)


def _loop(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    return bodies.loop(translation, node, values, walk)


RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.ELEMENTWISE, elementwise.elementwise),
    **dict.fromkeys(mixing.REDUCTIONS, mixing.reduction),
    **dict.fromkeys(mixing.ALONG, mixing.along),
    **dict.fromkeys(mixing.FROM_AXIS_ON, mixing.normalisation),
    **dict.fromkeys(cells.STATE_NAMES, cells.cell),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), mixing.channels),
    **dict.fromkeys(("MatMul", "MatMulInteger"), mixing.product),
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), windows.pool
    ),
    "Gemm": mixing.gemm,
    "Einsum": mixing.einsum,
    "Shape": shaping.shape,
    "Size": shaping.size,
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.unsqueeze,
    "Squeeze": shaping.squeeze,
    "Reshape": shaping.reshape,
    "Flatten": shaping.flatten,
    "Expand": shaping.expand,
    "ConstantOfShape": shaping.constant_of_shape,
    "Concat": shaping.concat,
    "Tile": shaping.tile,
    "Gather": picking.gather,
    "Slice": picking.slice_,
    "Split": picking.split,
    "Pad": windows.pad,
    "Conv": windows.convolution,
    "ConvTranspose": windows.transposed,
    "Constant": _constant,
    "Dropout": _dropout,
    "If": _branch,
    "Scan": _scan,
    "Loop": _loop,
}


def walk(translation: Translation, nodes: Sequence[onnx.NodeProto]) -> None:
    """Translates nodes one after the other.

    Raises:
        Refused: One of them looks across time or rows, or nothing is known of it.
    """
    for node in nodes:
        values = [translation.value(name) for name in node.input]
        found = translation.folded(node) or _rule(node)(translation, node, values)
        for name, value in zip(node.output, found, strict=False):
            if name:
                _check_crossing(node, value)
                translation.values[name] = _settled(value)
        translation.done_count += 1


def _check_crossing(node: onnx.NodeProto, value: Value) -> None:
    """Refuses what puts tokens, or rows, side by side with one another."""
    for symbol, what in ((TIME, "token"), (BATCH, "row")):
        if sum(symbol in axis for axis in value.axes) > 1:
            raise Refused(f"{label(node)} holds every {what} against every other, which no stream can")
    if value.reach == "last" and any(TIME in axis for axis in value.axes):
        raise Refused(
            f"{label(node)} spreads what is known after the last token over all tokens, so earlier ones "
            "see later ones; use the state of the same token"
        )


def _settled(value: Value) -> Value:
    """Returns extents that are but numbers as the constant they are."""
    extents = value.sizes
    if extents is None or not all(isinstance(extent, int) for extent in extents.reshape(-1)):
        return value
    return constant(extents.astype(np.int64))


def _rule(node: onnx.NodeProto) -> Rule:
    if node.op_type in _LOOKS:
        raise Refused(f"{label(node)} {_LOOKS[node.op_type]}")
    if node.domain not in ("", "ai.onnx"):
        raise Refused(
            f"{label(node)} is a custom operator of {node.domain!r}, of which nothing is known; "
            "export with ONNX's own "
            "operators"
        )
    if node.op_type in _RANDOM:
        raise Refused(
            f"{label(node)} draws random numbers, so a retry gives something else; export for inference"
        )
    if node.op_type.startswith(("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence")):
        raise Refused(f"{label(node)} handles sequences of tensors, which no stream has; use a time axis")
    rule = RULES.get(node.op_type)
    if rule is None:
        raise Refused(
            f"{label(node)}: nothing is known of what this operator does along time, so nothing can "
            "be proved; write "
            "it in others, or export one step with holdfast model export"
        )
    return rule
