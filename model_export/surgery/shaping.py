"""Rules for operators that move entries without computing: reshapes, transpositions, joins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from model_export.surgery.axes import (
    ONE,
    TIME,
    Axis,
    Extent,
    Size,
    axis_of,
    extent_of,
    is_fixed,
    is_same,
    joined,
    number_of,
    regroup,
)
from model_export.surgery.translation import Translation, attribute, check_plain, join_reach, label, uniform
from model_export.surgery.value import STATE_COPY, Refused, Value, flat, in_words, numbers

Values = Sequence[Value | None]


def first_of(node: onnx.NodeProto, values: Values) -> Value:
    """Returns the tensor that is moved."""
    value = values[0] if values else None
    assert value is not None, f"bug: {node.op_type} without an input"
    return value


def axes_argument(node: onnx.NodeProto, values: Values, place: int = 1) -> list[int] | None:
    """Returns axes, from an attribute in old versions and an input in new ones; None if there are none."""
    if len(values) > place and values[place] is not None:
        return numbers(values[place], f"the axes of {label(node)}")
    found = attribute(node, "axes")
    return None if found is None else list(found)


def shape(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """The extents, as what they stand for."""
    value = first_of(node, values)
    check_plain(node, values)
    ends = slice(attribute(node, "start", 0), attribute(node, "end"))
    extents = [extent_of(axis) for axis in value.axes][ends]
    translation.keep(node)
    content = np.empty(len(extents), object)
    content[:] = extents
    return [Value((axis_of(len(extents)),), "size", sizes=content)]


def size(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """The number of entries."""
    content = np.empty((), object)
    content[()] = extent_of(joined(*first_of(node, values).axes))
    translation.keep(node)
    return [Value((), "size", sizes=content)]


def transpose(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Another order of axes; padding of time goes along."""
    value = first_of(node, values)
    order = list(attribute(node, "perm", []) or reversed(range(value.rank)))
    translation.keep(node)
    if value.padded is None:
        turned_axes = tuple(value.axes[at] for at in order)
        return [Value(turned_axes, value.reach, token=value.token, after=value.after)]
    turned = translation.add("Transpose", [value.padded], f"{value.padded}_turned", perm=order)
    axes = tuple(value.axes[at] for at in order)
    return [Value(axes, value.reach, before=value.before, after=value.after, padded=turned)]


def unsqueeze(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Axes of extent 1 more."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    places = axes_argument(node, values) or []
    rank = value.rank + len(places)
    places = sorted(place % rank for place in places)
    axes = list(value.axes)
    for place in places:
        axes.insert(place, ONE)
    translation.keep(node)
    result = value.shaped(tuple(axes))
    extents = value.extents if value.sizes is not None else None
    return [result if extents is None else result.holding(np.expand_dims(extents, tuple(places)))]


def squeeze(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Axes of extent 1 less."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    places = axes_argument(node, values)
    if places is None:
        places = [at for at, axis in enumerate(value.axes) if axis == ONE]
        if translation.opset >= 13:
            translation.replace(node, {1: translation.integers(places, "squeezed")})
        else:
            translation.replace(node, {}, axes=places)
    else:
        translation.keep(node)
    places = [place % value.rank for place in places]
    for place in places:
        if value.axes[place] != ONE:
            raise Refused(
                f"{label(node)} takes axis {place} of {in_words(value.axes)} away, which was 1 when "
                "the graph was "
                "exported; export with dynamic batch and time axes"
            )
    result = value.shaped(tuple(axis for at, axis in enumerate(value.axes) if at not in places))
    extents = value.extents if value.sizes is not None else None
    return [result if extents is None else result.holding(np.squeeze(extents, tuple(places)))]


def reshape(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """The same factors, grouped otherwise; constants of a fixed batch or time are freed."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    asked = flat(values[1])
    if asked is None or None in asked:
        raise Refused(
            f"{label(node)}: its shape is computed from more than extents; export it as a constant"
        )
    if not attribute(node, "allowzero", 0):
        asked = [extent_of(value.axes[at]) if extent == 0 else extent for at, extent in enumerate(asked)]
    axes = regroup(value.axes, asked, translation.frozen)
    if axes is None:
        raise Refused(
            f"{label(node)} makes {_shown(asked)} of {in_words(value.axes)}, which has no one reading "
            "once batch "
            "and time are free; export with dynamic batch and time axes",
            tuple(extent for extent in asked if isinstance(extent, int) and extent > 1),
        )
    result = value.shaped(axes)
    if value.sizes is not None and value.extents is not None:
        result = result.holding(value.extents.reshape([number_of(axis) for axis in axes]))
    shape_value = values[1]
    if shape_value is not None and shape_value.data is None:
        translation.keep(node)  # computed from extents, so it follows them
        return [result]
    target = free_shape(translation, axes, value.axes)
    translation.replace(node, {1: target}, allowzero=None)
    return [result]


def free_shape(translation: Translation, axes: tuple[Axis, ...], before: tuple[Axis, ...]) -> str:
    """Returns the name of a shape that holds for any number of rows and tokens."""
    wanted: list[int | None] = [
        number_of(axis) if is_fixed(axis) else 0 if at < len(before) and before[at] == axis else None
        for at, axis in enumerate(axes)
    ]
    if wanted.count(None) <= 1:
        return translation.integers([-1 if one is None else one for one in wanted], "shape")
    parts = []
    for axis, one in zip(axes, wanted, strict=True):
        if one is not None:
            parts.append(translation.integers([one], "extent"))
            continue
        numbers_in = number_of(tuple(factor for factor in axis if isinstance(factor, int)))
        name = translation.integers([numbers_in], "extent")
        for symbol in (factor for factor in axis if isinstance(factor, str)):
            name = translation.add("Mul", [name, translation.count(symbol)], "extent")
        parts.append(name)
    return translation.add("Concat", parts, "shape", axis=0)


def flatten(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Two axes of all."""
    value = first_of(node, values)
    check_plain(node, values)
    place = attribute(node, "axis", 1)
    place = place + value.rank if place < 0 else place
    translation.keep(node)
    return [value.shaped((joined(*value.axes[:place]), joined(*value.axes[place:])))]


def expand(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Spreads entries; never the last token's over all."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    asked = flat(values[1])
    if asked is None or None in asked:
        raise Refused(
            f"{label(node)}: its shape is computed from more than extents; export it as a constant"
        )
    replaced: dict[int, str] = {}
    value = _shrunk(translation, node, value, asked, replaced)
    axes = _spread(translation, node, value, [extent for extent in asked if extent is not None])
    reach = value.reach
    if reach == "last" and TIME in joined(*axes) and TIME not in joined(*value.axes):
        raise Refused(
            f"{label(node)} repeats what is known after the last token for every token, so earlier tokens "
            "see later ones; use the state of the same token"
        )
    shape_value = values[1]
    if (
        shape_value is not None
        and shape_value.data is not None
        and any(not is_fixed(axis) for axis in axes)
    ):
        ones = [1 if not is_fixed(axis) else number_of(axis) for axis in axes]
        replaced[1] = translation.integers(ones, "shape")
    translation.replace(node, replaced)
    return [Value(axes, reach, token=value.token)]


def _shrunk(
    translation: Translation,
    node: onnx.NodeProto,
    value: Value,
    asked: Sequence[Extent | None],
    replaced: dict[int, str],
) -> Value:
    """Returns a constant without the entries per row that it has only because the batch was fixed."""
    for back in range(1, min(len(asked), value.rank) + 1):
        extent, axis = asked[-back], value.axes[-back]
        if isinstance(extent, Size) and len(axis) == 1 and is_fixed(axis):
            symbols = joined(extent.symbols, axis_of(extent.factor))
            shrunk = (
                uniform(value, value.rank - back)
                if is_same(number_of(axis), symbols, translation.frozen)
                else None
            )
            if shrunk is not None:
                replaced[0] = translation.weight(shrunk, f"{node.input[0]}_for_any")
                value = translation.here(replaced[0])
    return value


def _spread(
    translation: Translation, node: onnx.NodeProto, value: Value, asked: list[Extent]
) -> tuple[Axis, ...]:
    rank = max(len(asked), value.rank)
    mine = (ONE,) * (rank - value.rank) + value.axes
    theirs: list[Extent] = [*([1] * (rank - len(asked))), *asked]
    axes = []
    for axis, extent in zip(mine, theirs, strict=True):
        if extent in (1, -1) or is_same(extent, axis, translation.frozen):
            axes.append(axis)
        elif axis == ONE:
            axes.append(axis_of(extent) if isinstance(extent, int) else axis_of_size(node, extent))
        else:
            raise Refused(f"{label(node)} makes {_shown(theirs)} of {in_words(value.axes)}")
    return tuple(axes)


def axis_of_size(node: onnx.NodeProto, extent: Extent | None) -> Axis:
    """Returns the axis that has a computed extent."""
    if isinstance(extent, int):
        return axis_of(extent)
    if extent is None or extent.plus or len(extent.symbols) > 1:
        raise Refused(f"{label(node)} makes an axis of an extent that is computed from several others")
    return joined(extent.symbols, axis_of(extent.factor))


def constant_of_shape(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """The same number everywhere."""
    asked = flat(values[0])
    if asked is None:
        raise Refused(
            f"{label(node)}: its shape is computed from more than extents; export it as a constant"
        )
    translation.keep(node)
    return [Value(tuple(axis_of_size(node, extent) for extent in asked))]


def concat(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Joins along numbers."""
    given = [value for value in values if value is not None]
    check_plain(node, given)
    place = attribute(node, "axis", 0) % given[0].rank
    contents = [value.extents for value in given]
    if any(value.sizes is not None for value in given):
        translation.keep(node)
        if any(content is None for content in contents):
            return [Value((axis_of(sum(number_of(value.axes[0]) for value in given)),), "size")]
        whole: Any = np.concatenate([np.asarray(content, object) for content in contents], place)
        return [Value(tuple(axis_of(extent) for extent in whole.shape), "size", sizes=whole)]
    for value in given:
        if not is_fixed(value.axes[place]) and len(given) > 1:
            words = "tokens" if TIME in value.axes[place] else "rows"
            raise Refused(
                f"{label(node)} puts further {words} beside those of the run; keep them as a state"
            )
    total = sum(number_of(value.axes[place]) for value in given) if len(given) > 1 else 0
    axes = []
    for at in range(given[0].rank):
        found = [value.axes[at] for value in given]
        if at == place and len(given) > 1:
            axes.append(axis_of(total))
        elif any(axis != found[0] for axis in found):
            shown = " and ".join(in_words(value.axes) for value in given)
            raise Refused(f"{label(node)}: shapes {shown} do not go together once batch and time are free")
        else:
            axes.append(found[0])
    translation.keep(node)
    tokens = {value.token for value in given}
    return [
        Value(tuple(axes), join_reach(node, given), token=tokens.pop() if tokens == {STATE_COPY} else None)
    ]


def tile(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Repeats along numbers."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    counts = numbers(values[1], f"the repeats of {label(node)}")
    for axis, count in zip(value.axes, counts, strict=True):
        if count != 1 and not is_fixed(axis):
            raise Refused(f"{label(node)} repeats the {'tokens' if TIME in axis else 'rows'} of a run")
    translation.keep(node)
    axes = tuple(
        axis if count == 1 else axis_of(number_of(axis) * count)
        for axis, count in zip(value.axes, counts, strict=True)
    )
    return [Value(axes, value.reach)]


def _shown(extents: Sequence[Extent | None]) -> str:
    words = [
        " x ".join([*extent.symbols, *([str(extent.factor)] if extent.factor != 1 else [])])
        if isinstance(extent, Size)
        else str(extent)
        for extent in extents
    ]
    return f"[{', '.join(words)}]"
