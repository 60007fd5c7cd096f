"""Rules for operators that pick entries: Gather, Slice, Split. Of time only the last one may be."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx

from model_export.surgery.axes import (
    BATCH,
    HERE,
    ONE,
    TIME,
    Axis,
    Extent,
    Size,
    axis_of,
    is_fixed,
    number_of,
)
from model_export.surgery.shaping import first_of
from model_export.surgery.translation import Translation, attribute, check_plain, join_reach, label
from model_export.surgery.value import Reach, Refused, Value, depends_on_size, flat, in_words, numbers

Values = Sequence[Value | None]

FAR = 1 << 30
"""Slices to the end write some number beyond."""

_HERE = Size((HERE,))


def gather(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Looks up: rows of a table by token, columns, the last token, the present one in a loop."""
    value, index = first_of(node, values), values[1]
    assert index is not None, "bug: Gather without an index"
    check_plain(node, values)
    place = attribute(node, "axis", 0) % value.rank
    axis = value.axes[place]
    if TIME in axis:
        return _of_time(translation, node, value, index, place)
    if BATCH in axis:
        raise Refused(
            f"{label(node)} picks rows out of the batch axis, so rows are not alike; export for one row"
        )
    if value.sizes is not None:
        return _of_sizes(translation, node, value, index, place)
    _check_token_number(node, index, value)
    translation.keep(node)
    if value.reach == "constant" and index.token is not None and place == 0:
        known = translation.vocabularies.get(index.token)
        extent = number_of(axis)
        translation.vocabularies[index.token] = extent if known is None else min(known, extent)
    axes = (*value.axes[:place], *index.axes, *value.axes[place + 1 :])
    return [Value(axes, join_reach(node, [value, index]))]


def _check_token_number(node: onnx.NodeProto, index: Value, value: Value) -> None:
    if depends_on_size(index):
        raise Refused(
            f"{label(node)} picks from {in_words(value.axes)} by the number of the token in its run, "
            "which depends "
            "on how a stream is cut into chunks; keep a counter as a state"
        )


def _of_sizes(
    translation: Translation, node: onnx.NodeProto, value: Value, index: Value, place: int
) -> list[Value]:
    picked = numbers(index, f"the index of {label(node)}")
    translation.keep(node)
    assert value.extents is not None, "bug: sizes without a content"
    content = np.take(value.extents, np.array(picked).reshape(_shape(index)), place)
    holder = np.empty(np.shape(content), object)
    holder[...] = content
    return [Value(tuple(axis_of(extent) for extent in np.shape(content)), "size", sizes=holder)]


def _shape(value: Value) -> list[int]:
    return [number_of(axis) for axis in value.axes]


def _of_time(
    translation: Translation, node: onnx.NodeProto, value: Value, index: Value, place: int
) -> list[Value]:
    """The last token; within a loop the present one."""
    picked = flat(index)
    if value.axes[place] != (TIME,) or picked is None or len(picked) != 1:
        raise Refused(
            f"{label(node)} picks tokens by themselves; only the last one can be picked in a stream"
        )
    axes = (*value.axes[:place], *index.axes, *value.axes[place + 1 :])
    if picked[0] == _HERE:
        translation.keep(node)
        return [Value(axes, "here", token=value.token)]
    check_last(translation, node, picked[0])
    last = translation.weight(np.full(_shape(index), -1, np.int64), "last_token")
    translation.replace(node, {1: last})
    return [Value(axes, "last" if value.reach == "each" else value.reach)]


def check_last(translation: Translation, node: onnx.NodeProto, place: Extent | None) -> None:
    """Refuses to pick any token but the last one."""
    frozen = translation.frozen.get(TIME)
    if place == -1 or place == Size((TIME,), 1, -1) or (frozen is not None and place == frozen - 1):
        return
    if isinstance(place, int):
        raise Refused(
            f"{label(node)} picks token {place} by itself: the sequence was written out token by "
            "token, or an "
            "early token is kept; export one step with holdfast model export, or keep that token as a state"
        )
    raise Refused(
        f"{label(node)} picks a token by a computed number; only the last one can be picked in a stream"
    )


def slice_(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Picks ranges of numbers; of time all, the last token, or all but what a convolution has behind it."""
    value = first_of(node, values)
    if len(values) > 1:
        starts, ends = flat(values[1]), flat(values[2])
        places = None if len(values) < 4 or values[3] is None else numbers(values[3], "axes")
        steps = [1] if len(values) < 5 or values[4] is None else numbers(values[4], "steps")
    else:
        starts, ends = list(attribute(node, "starts")), list(attribute(node, "ends"))
        places, steps = attribute(node, "axes"), [1]
    if starts is None or ends is None:
        raise Refused(
            f"{label(node)}: its ends are computed from more than extents; export them as constants"
        )
    places = [place % value.rank for place in places] if places is not None else list(range(len(starts)))
    if len(steps) == 1:
        steps = steps * len(starts)
    if value.sizes is not None and value.extents is not None:
        return _slice_sizes(translation, node, value, [(starts, ends, steps)])
    axes, is_plain, shown = list(value.axes), True, False
    reach: Reach = value.reach
    for place, start, end, step in zip(places, starts, ends, steps, strict=True):
        if is_fixed(value.axes[place]):
            axes[place] = _range(node, value.axes[place], start, end, step)
            continue
        is_plain = False
        what = _of_symbol(translation, node, value, place, (start, end, step))
        if what != "all":
            axes[place], reach, shown = ONE, what, True
    if is_plain:
        check_plain(node, [value])
        translation.keep(node)
        return [Value(tuple(axes), reach, token=value.token if axes == list(value.axes) else None)]
    if shown and reach == "here":
        translation.keep(node)
        return [Value(tuple(axes), reach)]
    return [_sliced(translation, node, value, places, (starts, ends, steps), tuple(axes), reach)]


def _sliced(
    translation: Translation,
    node: onnx.NodeProto,
    value: Value,
    places: list[int],
    cuts: tuple[Sequence[Extent | None], Sequence[Extent | None], list[int]],
    axes: tuple[Axis, ...],
    reach: Reach,
) -> Value:
    """Writes the slice anew: of time from the last token on, or not at all."""
    kept: list[tuple[int, int, int, int]] = []
    for place, start, end, step in zip(places, *cuts, strict=True):
        if is_fixed(value.axes[place]):
            assert isinstance(start, int), "bug: the start of a range is not known"
            assert isinstance(end, int), "bug: the end of a range is not known"
            kept.append((place, start, end, step))
        elif axes[place] == ONE:
            kept.append((place, -1, FAR, 1))
    if not kept:
        translation.nodes.append(onnx.helper.make_node("Identity", [node.input[0]], list(node.output)))
        return Value(axes, reach, token=value.token)
    if translation.opset < 10:
        attributes = {
            "axes": [c[0] for c in kept],
            "starts": [c[1] for c in kept],
            "ends": [c[2] for c in kept],
        }
        translation.replace(node, {}, **attributes)
        return Value(axes, reach)
    inputs = [node.input[0]]
    for what, entries in (("starts", 1), ("ends", 2), ("axes", 0), ("steps", 3)):
        inputs.append(translation.integers([cut[entries] for cut in kept], what))
    translation.nodes.append(onnx.helper.make_node("Slice", inputs, list(node.output), name=node.name))
    return Value(axes, reach)


def _of_symbol(
    translation: Translation,
    node: onnx.NodeProto,
    value: Value,
    place: int,
    cut: tuple[Extent | None, Extent | None, int],
) -> Reach | Literal["all"]:
    """Says what a slice of time or batch takes: `all`, the `last` token, or the present one, `here`."""
    axis, (start, end, step) = value.axes[place], cut
    frozen = translation.frozen.get(axis[0]) if len(axis) == 1 and isinstance(axis[0], str) else None
    length = Size((str(axis[0]),)) if len(axis) == 1 else None
    is_to_end = end == length or (isinstance(end, int) and (end >= FAR or end == frozen))
    if step < 0 and (TIME in axis):
        raise Refused(
            f"{label(node)} turns the time axis round, so it starts with tokens to come; train it forward"
        )
    if step == 1 and start == 0 and is_to_end and not value.after:
        return "all"
    if step == 1 and start == 0 and value.after and TIME in axis and _cuts_behind(value, end, frozen):
        return "all"
    if axis == (TIME,) and start == _HERE and end == Size((HERE,), 1, 1) and step == 1:
        return "here"
    if axis == (TIME,) and step == 1 and (is_to_end or end is None) and not value.after:
        check_last(translation, node, start)
        return "last" if value.reach == "each" else value.reach
    what = "tokens" if TIME in axis else "rows"
    raise Refused(
        f"{label(node)} picks some {what} of a run by their number: the sequence was written out token by "
        "token, or early tokens are kept; export one step with holdfast model export, or keep them as a "
        "state"
    )


def _cuts_behind(value: Value, end: Extent | None, frozen: int | None) -> bool:
    """Says whether a slice takes away just what a convolution has behind the last token."""
    return end in (-value.after, Size((TIME,))) or (frozen is not None and end == frozen)


def _range(node: onnx.NodeProto, axis: Axis, start: Extent | None, end: Extent | None, step: int) -> Axis:
    if not isinstance(start, int) or not isinstance(end, int):
        raise Refused(f"{label(node)} picks from a fixed axis by the number of the token in its run")
    picked = range(number_of(axis))[
        slice(start, end if step > 0 or end >= -number_of(axis) else None, step)
    ]
    return axis_of(len(picked))


def _slice_sizes(
    translation: Translation,
    node: onnx.NodeProto,
    value: Value,
    cuts: list[tuple[list[Extent | None], list[Extent | None], list[int]]],
) -> list[Value]:
    starts, ends, steps = cuts[0]
    assert value.extents is not None, "bug: sizes without a content"
    if value.rank != 1 or not isinstance(starts[0], int) or not isinstance(ends[0], int):
        raise Refused(f"{label(node)} picks extents by a computed number; export it as a constant")
    content = value.extents[slice(starts[0], ends[0], steps[0])]
    translation.keep(node)
    return [Value((axis_of(len(content)),), "size", sizes=content)]


def split(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Cuts along numbers."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    place = attribute(node, "axis", 0) % value.rank
    axis = value.axes[place]
    if not is_fixed(axis):
        what = "tokens" if TIME in axis else "rows"
        raise Refused(f"{label(node)} parts the {what} of a run from one another; export one step instead")
    if len(values) > 1 and values[1] is not None:
        parts = numbers(values[1], f"the parts of {label(node)}")
    else:
        parts = list(attribute(node, "split", []))
    if not parts:
        each = -(-number_of(axis) // len(node.output))
        parts = [min(each, number_of(axis) - each * at) for at in range(len(node.output))]
    translation.keep(node)
    if value.sizes is not None and value.extents is not None:
        cut = np.split(value.extents, np.cumsum(parts)[:-1])
        return [
            Value((axis_of(part),), "size", sizes=piece) for part, piece in zip(parts, cut, strict=True)
        ]
    return [
        Value((*value.axes[:place], axis_of(part), *value.axes[place + 1 :]), value.reach) for part in parts
    ]
