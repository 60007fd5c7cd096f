"""Rules for operators that treat every entry by itself, and for broadcasting."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from model_export.surgery.axes import (
    BATCH,
    ONE,
    TIME,
    Axis,
    Extent,
    divided,
    is_fixed,
    is_same,
    number_of,
    plus,
    times,
)
from model_export.surgery.translation import Translation, attribute, check_plain, join_reach, label, uniform
from model_export.surgery.value import Refused, Value, depends_on_size, in_words

ELEMENTWISE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
)

_WORDS = {TIME: "token", BATCH: "row"}

_SIZES: dict[str, Callable[[Extent | None, Extent | None], Extent | None]] = {
    "Add": plus,
    "Sub": lambda left, right: plus(left, right, -1),
    "Mul": times,
    "Div": divided,
}


def elementwise(
    translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]
) -> list[Value]:
    """Broadcasts all inputs."""
    if node.op_type == "CastLike":
        values = values[:1]  # of the other one only the type counts
    given = [value for value in values if value is not None]
    after = behind(node, given)
    sizes = _sizes(node, given)
    if sizes is not None:
        translation.keep(node)
        return [sizes]
    for value in given:
        if depends_on_size(value):
            raise Refused(
                f"{label(node)} computes with the number of tokens or rows, which depends on how a "
                "stream is "
                "cut into chunks; keep a counter as a state"
            )
    reach = join_reach(node, given)
    if node.op_type == "DequantizeLinear" or node.op_type == "QuantizeLinear":
        _check_scale(node, given)
        translation.keep(node)
        return [Value(given[0].axes, reach)]
    replaced: dict[int, str] = {}
    axes = broadcast(translation, node, values, replaced)
    translation.replace(node, replaced)
    tokens = {value.token for value in given if value.reach != "constant"}
    keeps_values = node.op_type in ("Identity", "Cast", "CastLike")
    return [
        Value(axes, reach, token=given[0].token if keeps_values and len(tokens) == 1 else None, after=after)
    ]


def behind(node: onnx.NodeProto, given: Sequence[Value]) -> int:
    """Returns how many entries behind the last token are to be cut off still.

    They are not there any more; the graph may go on with them as long as it treats each entry by itself.
    """
    counts = {value.after for value in given if value.reach != "constant"}
    if any(value.padded is not None for value in given) or len(counts) > 1:
        check_plain(node, given)
    return counts.pop() if counts else 0


def broadcast(
    translation: Translation,
    node: onnx.NodeProto,
    values: Sequence[Value | None],
    replaced: dict[int, str],
) -> tuple[Axis, ...]:
    """Returns the axes of inputs that are spread over one another.

    Args:
        translation: Where constants go that are shrunk.
        node: For messages.
        values: The inputs.
        replaced: Takes the names of shrunk constants by place.

    Raises:
        Refused: They do not fit, or a constant has an entry for each row or token of a fixed size.
    """
    rank = max((value.rank for value in values if value is not None), default=0)
    axes: list[Axis] = []
    for back in range(rank, 0, -1):
        found = [value.axes[-back] for value in values if value is not None and value.rank >= back]
        wide = next((axis for axis in found if not is_fixed(axis)), None)
        wide = wide or next((axis for axis in found if axis != ONE), ONE)
        axes.append(wide)
    for place, value in enumerate(values):
        if value is None:
            continue
        current = value
        for at, axis in enumerate(value.axes):
            wide = axes[rank - value.rank + at]
            if axis in (wide, ONE):
                continue
            shrunk = (
                uniform(current, at)
                if is_fixed(axis) and is_same(number_of(axis), wide, translation.frozen)
                else None
            )
            if shrunk is None or len(axis) != 1:
                shown = " and ".join(in_words(one.axes) for one in values if one is not None)
                raise Refused(
                    f"{label(node)}: shapes {shown} do not go together once batch and time are free; "
                    "export "
                    "with dynamic batch and time axes"
                )
            replaced[place] = translation.weight(shrunk, f"{node.input[place]}_for_any")
            current = translation.here(replaced[place])
    for symbol in (TIME, BATCH):
        if sum(symbol in axis for axis in axes) > 1:
            raise Refused(
                f"{label(node)} holds every {_WORDS[symbol]} against every other; a stream cannot"
            )
    return tuple(axes)


def _sizes(node: onnx.NodeProto, given: Sequence[Value]) -> Value | None:
    """Returns the outcome on extents; None if any input is something else."""
    contents = [value.extents for value in given]
    if not contents or any(content is None for content in contents):
        return None
    if all(value.sizes is None for value in given):
        return None
    axes = max((value.axes for value in given), key=len)
    if node.op_type in ("Identity", "Cast", "CastLike"):
        is_whole = node.op_type != "Cast" or attribute(node, "to") in (
            onnx.TensorProto.INT64,
            onnx.TensorProto.INT32,
        )
        return Value(given[0].axes, "size", sizes=contents[0]) if is_whole else Value(axes, "size")
    operation = _SIZES.get(node.op_type)
    if operation is None or len(contents) != 2:
        return Value(axes, "size", sizes=_unknown(axes))
    left, right = np.broadcast_arrays(*(np.asarray(content, object) for content in contents))
    return Value(axes, "size", sizes=_each(operation, left, right))


def _each(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    result = np.empty(left.shape, object)
    for place in np.ndindex(left.shape):
        result[place] = operation(left[place], right[place])
    return result


def _unknown(axes: tuple[Axis, ...]) -> Any:
    shape = [1 if axis == ONE else int(axis[0]) for axis in axes]
    return np.full(shape, None, object)


def _check_scale(node: onnx.NodeProto, given: Sequence[Value]) -> None:
    """A scale is a constant; one that is computed is computed from all rows."""
    if any(value.reach != "constant" for value in given[1:]):
        raise Refused(f"{label(node)}: its scale is computed from the tokens; export it with a fixed scale")
    if attribute(node, "axis") is None or given[1].rank == 0 or given[0].reach == "constant":
        return
    axis = attribute(node, "axis")
    if not is_fixed(given[0].axes[axis]):
        raise Refused(f"{label(node)}: it has a scale for each row or token; give it one for all")
