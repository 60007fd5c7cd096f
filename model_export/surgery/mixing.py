"""Rules for operators that mix entries along axes: allowed along numbers, never along time or batch."""

from collections.abc import Sequence

import onnx

from model_export.surgery.axes import BATCH, ONE, TIME, Axis, axis_of, is_fixed, number_of
from model_export.surgery.elementwise import broadcast
from model_export.surgery.translation import Translation, attribute, check_plain, join_reach, label
from model_export.surgery.value import Refused, Value, depends_on_size, in_words, numbers

REDUCTIONS = frozenset(
    [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "ArgMax",
        "ArgMin",
    ]
)
ALONG = frozenset({"Softmax", "LogSoftmax", "Hardmax", "CumSum", "CumProd", "LpNormalization", "TopK"})
FROM_AXIS_ON = frozenset({"LayerNormalization", "RMSNormalization"})


def _given(node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    check_plain(node, values)
    given = [value for value in values if value is not None]
    if any(depends_on_size(value) for value in given):
        raise Refused(
            f"{label(node)} computes with the number of tokens or rows; keep a counter as a state"
        )
    return given


def _check_along(node: onnx.NodeProto, value: Value, places: Sequence[int], words: str) -> None:
    """Refuses to mix tokens or rows."""
    for place in places:
        axis = value.axes[place]
        if TIME in axis:
            raise Refused(
                f"{label(node)} {words} the time axis, so a token sees those after it; only what is "
                "causal can "
                "stream: a recurrent layer, or a causal convolution"
            )
        if BATCH in axis:
            raise Refused(
                f"{label(node)} {words} the batch axis, so rows see one another; export it for one row"
            )


def reduction(
    translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]
) -> list[Value]:
    """Sums, means, largest entries."""
    value = _given(node, values)[0]
    if node.op_type in ("ArgMax", "ArgMin"):
        places = [attribute(node, "axis", 0)]
    elif len(values) > 1 and values[1] is not None:
        places = numbers(values[1], f"the axes of {label(node)}")
    else:
        places = list(attribute(node, "axes", []) or range(value.rank))
        if attribute(node, "noop_with_empty_axes", 0) and attribute(node, "axes") is None:
            places = []
    places = [place % value.rank for place in places]
    _check_along(node, value, places, "reduces")
    translation.keep(node)
    keeps = attribute(node, "keepdims", 1)
    axes = [
        ONE if at in places else axis for at, axis in enumerate(value.axes) if keeps or at not in places
    ]
    return [Value(tuple(axes), value.reach)]


def along(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """Softmax and its like, which keep the shape; TopK."""
    given = _given(node, values)
    value = given[0]
    if node.op_type in ("CumSum", "CumProd"):
        place = numbers(values[1], f"the axis of {label(node)}")[0] % value.rank
    else:
        place = attribute(node, "axis", -1) % value.rank
    places = [place]
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and translation.opset < 13:
        place = attribute(node, "axis", 1) % value.rank
        places = list(range(place, value.rank))
    words = "adds up along" if node.op_type in ("CumSum", "CumProd") else "normalises over"
    _check_along(node, value, places, words)
    translation.keep(node)
    if node.op_type == "TopK":
        count = numbers(values[1], f"the count of {label(node)}")[0]
        axes = tuple(axis_of(count) if at == place else axis for at, axis in enumerate(value.axes))
        return [Value(axes, value.reach), Value(axes, value.reach)]
    return [Value(value.axes, value.reach)]


def normalisation(
    translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]
) -> list[Value]:
    """LayerNormalization: over all axes from one on."""
    value = _given(node, values)[0]
    first = attribute(node, "axis", -1) % value.rank
    _check_along(node, value, range(first, value.rank), "normalises over")
    translation.keep(node)
    kept = tuple(axis if at < first else ONE for at, axis in enumerate(value.axes))
    return [Value(value.axes, value.reach), *(Value(kept, value.reach) for _ in node.output[1:])]


def channels(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """BatchNormalization with the figures of the training; the others normalise over all that is behind."""
    value = values[0]
    assert value is not None, "bug: a normalisation without an input"
    if node.op_type == "BatchNormalization" and value.padded is None:
        after = value.after
    else:
        check_plain(node, values)
        after = 0
    if node.op_type == "BatchNormalization":
        if attribute(node, "training_mode", 0):
            raise Refused(
                f"{label(node)} is in training mode, where rows see one another; export after eval()"
            )
        if value.rank > 1 and not is_fixed(value.axes[1]):
            raise Refused(f"{label(node)} has {in_words(value.axes)}, its channels must be axis 1")
    else:
        _check_along(node, value, range(1, value.rank), "normalises over")
    translation.keep(node)
    return [Value(value.axes, value.reach, after=after)]


def product(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """MatMul and MatMulInteger."""
    given = _given(node, values)
    left, right = given[0], given[1]
    if node.op_type == "MatMulInteger" and any(value.reach != "constant" for value in given[2:]):
        raise Refused(
            f"{label(node)}: its zero point is computed from the tokens; export it with a fixed one"
        )
    if left.rank < 1 or right.rank < 1:
        raise Refused(f"{label(node)} multiplies numbers without axes")
    inner = (left.axes[-1], right.axes[-2] if right.rank > 1 else right.axes[-1])
    _check_along(node, left, [left.rank - 1], "sums over")
    _check_along(node, right, [max(right.rank - 2, 0)], "sums over")
    if number_of(inner[0]) != number_of(inner[1]):
        raise Refused(
            f"{label(node)}: shapes {in_words(left.axes)} and {in_words(right.axes)} do not go together"
        )
    _check_pairs(node, left.axes[-2:-1], right.axes[-1:] if right.rank > 1 else ())
    reach = join_reach(node, given)
    replaced: dict[int, str] = {}
    leading = broadcast(
        translation, node, [Value(left.axes[:-2], reach), Value(right.axes[:-2], reach)], replaced
    )
    translation.keep(node)
    return [Value((*leading, *left.axes[-2:-1], *(right.axes[-1:] if right.rank > 1 else ())), reach)]


def _check_pairs(node: onnx.NodeProto, rows: tuple[Axis, ...], columns: tuple[Axis, ...]) -> None:
    """A table with tokens at one side and tokens at the other is attention."""
    if any(TIME in axis for axis in rows) and any(TIME in axis for axis in columns):
        raise Refused(
            f"{label(node)} holds every token against every other (attention over time); keep a ring "
            "of keys and "
            "values and a counter as states"
        )


def gemm(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """A linear layer of two axes."""
    given = _given(node, values)
    left = tuple(reversed(given[0].axes)) if attribute(node, "transA", 0) else given[0].axes
    right = tuple(reversed(given[1].axes)) if attribute(node, "transB", 0) else given[1].axes
    _check_along(node, Value(left), [1], "sums over")
    _check_along(node, Value(right), [0], "sums over")
    if number_of(left[1]) != number_of(right[0]):
        raise Refused(f"{label(node)}: shapes {in_words(left)} and {in_words(right)} do not go together")
    _check_pairs(node, left[:1], right[1:])
    replaced: dict[int, str] = {}
    axes = (left[0], right[1])
    if len(given) > 2:
        broadcast(translation, node, [Value(axes), None, given[2]], replaced)
    translation.replace(node, replaced)
    return [Value(axes, join_reach(node, given))]


def einsum(translation: Translation, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value]:
    """Letters that are summed over stand for numbers."""
    given = _given(node, values)
    inputs, arrow, output = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or "." in inputs or len(terms) != len(given):
        raise Refused(f"{label(node)}: write its equation with -> and without dots")
    meaning: dict[str, Axis] = {}
    for term, value in zip(terms, given, strict=True):
        if len(term) != value.rank:
            raise Refused(
                f"{label(node)}: {term!r} has not as many letters as {in_words(value.axes)} has axes"
            )
        for letter, axis in zip(term, value.axes, strict=True):
            if meaning.setdefault(letter, axis) != axis:
                raise Refused(f"{label(node)}: {letter!r} stands for two things")
    summed = [letter for letter in meaning if letter not in output]
    for letter in summed:
        _check_along(node, Value((meaning[letter],)), [0], "sums over")
    if sum(TIME in meaning[letter] for letter in output) > 1:
        _check_pairs(node, ((TIME,),), ((TIME,),))
    translation.keep(node)
    return [Value(tuple(meaning[letter] for letter in output), join_reach(node, given))]
