"""Rules for windows: Pad, convolutions, pools. A causal convolution over time keeps what it looks back on.

A convolution of kernel k and dilation d looks back (k - 1) d tokens. Before the first token it sees the
zeros that it is padded with, which is what its state starts with. What it is padded with behind makes it
look ahead, or makes outputs behind the last token, which a Slice has to cut off.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx

from model_export.surgery.axes import BATCH, ONE, TIME, TIME_AXIS, Axis, axis_of, is_fixed, number_of
from model_export.surgery.picking import FAR
from model_export.surgery.shaping import first_of
from model_export.surgery.translation import (
    StatePair,
    Translation,
    attribute,
    check_plain,
    join_reach,
    label,
)
from model_export.surgery.value import Misread, Refused, Value, in_words, numbers

Values = Sequence[Value | None]


class _Window(NamedTuple):
    """One axis of a window."""

    kernel: int
    dilation: int
    stride: int
    before: int
    after: int

    @property
    def back(self) -> int:
        """Entries it looks back on."""
        return (self.kernel - 1) * self.dilation


def pad(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Zeros around the tokens, for a convolution; anything around numbers."""
    value = first_of(node, values)
    check_plain(node, values[:1])
    if len(values) > 1:
        amounts = numbers(values[1], f"the padding of {label(node)}")
        places = numbers(values[3], "axes") if len(values) > 3 and values[3] is not None else None
    else:
        amounts, places = list(attribute(node, "pads")), None
    places = [at % value.rank for at in places] if places is not None else list(range(value.rank))
    half = len(amounts) // 2
    by_axis = {at: (amounts[n], amounts[n + half]) for n, at in enumerate(places)}
    for at, (before, after) in by_axis.items():
        if BATCH in value.axes[at] and (before or after):
            raise Refused(f"{label(node)} puts further rows beside those of the run")
    around = {at: by_axis[at] for at in by_axis if TIME in value.axes[at] and any(by_axis[at])}
    axes = tuple(
        axis_of(number_of(axis) + sum(by_axis.get(at, (0, 0)))) if is_fixed(axis) else axis
        for at, axis in enumerate(value.axes)
    )
    if not around:
        translation.keep(node)
        return [Value(axes, value.reach)]
    ((place, (before, after)),) = around.items()
    _check_zeros(node, values)
    if (
        value.axes[place] != TIME_AXIS
        or before < 0
        or after < 0
        or len(by_axis) - sum(map(any, by_axis.values())) < len(by_axis) - 1
    ):
        raise Refused(f"{label(node)} pads {in_words(value.axes)} along time and more; pad them one by one")
    return [Value(value.axes, value.reach, before=before, after=after, padded=node.input[0])]


def _check_zeros(node: onnx.NodeProto, values: Values) -> None:
    filling = values[2] if len(values) > 2 else None
    number = attribute(node, "value", 0.0)
    if filling is not None:
        number = math.nan if filling.data is None else float(np.asarray(filling.data).reshape(-1)[0])
    if attribute(node, "mode", "constant") != "constant" or number != 0:
        raise Refused(
            f"{label(node)} pads the time axis with something else than zeros; a stream has no edge to copy"
        )


def convolution(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """A convolution; along time with a state."""
    value, kernel = first_of(node, values), values[1]
    if kernel is None or kernel.reach != "constant" or value.rank < 3:
        raise Refused(f"{label(node)} has a kernel that is computed")
    places = [at for at in range(2, value.rank) if not is_fixed(value.axes[at])]
    windows = _windows(node, [number_of(axis) for axis in kernel.axes[2:]])
    if not is_fixed(value.axes[1]) or any(value.axes[at] != TIME_AXIS for at in places):
        raise Misread(
            f"{label(node)} reads {in_words(value.axes)}: channels must be axis 1, and time an axis "
            "by itself"
        )
    axes = [value.axes[0], kernel.axes[0]]
    for at, window in enumerate(windows, start=2):
        axes.append(value.axes[at] if at in places else _slid(value.axes[at], window))
    reach = join_reach(node, values)
    if not places:
        check_plain(node, values)
        translation.keep(node)
        return [Value(tuple(axes), reach)]
    place = places[0]
    after = _check_causal(node, value, windows[place - 2])
    source = _with_context(translation, node, value, place, windows[place - 2].back)
    pads = [window.before for window in windows] + [window.after for window in windows]
    pads[place - 2] = pads[place - 2 + len(windows)] = 0
    translation.replace(node, {0: source}, pads=pads, auto_pad=None)
    return [Value(tuple(axes), reach, after=after)]


def pool(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """Pools: along numbers only."""
    value = first_of(node, values)
    check_plain(node, values)
    is_global = node.op_type.startswith("Global")
    spatial = value.axes[2:]
    if is_global:
        windows = []
        passes = all(is_fixed(axis) for axis in value.axes[1:])
        axes = [*value.axes[:2], *([ONE] * len(spatial))]
    else:
        windows = _windows(node, list(attribute(node, "kernel_shape")))
        passes = all(
            is_fixed(axis) or (window.kernel, window.stride, window.before, window.after) == (1, 1, 0, 0)
            for axis, window in zip(spatial, windows, strict=True)
        )
        axes = [*value.axes[:2]]
        axes += [
            axis if not is_fixed(axis) else _slid(axis, w, attribute(node, "ceil_mode", 0))
            for axis, w in zip(spatial, windows, strict=True)
        ]
    if not passes:
        raise Refused(
            f"{label(node)} pools over the time axis; keep a running value as a state, or make a "
            "token of so many samples"
        )
    translation.keep(node)
    return [Value(tuple(axes), value.reach)]


def transposed(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """ConvTranspose: token by token only."""
    value, kernel = first_of(node, values), values[1]
    check_plain(node, values)
    if kernel is None or not all(is_fixed(axis) for axis in value.axes[1:]):
        raise Refused(
            f"{label(node)} spreads a token over those after it; overlap and add in a state by export_step"
        )
    if attribute(node, "output_shape") is not None:
        raise Refused(f"{label(node)}: write its pads instead of its output_shape")
    windows = _windows(node, [number_of(axis) for axis in kernel.axes[2:]])
    extra = list(attribute(node, "output_padding", [0] * len(windows)))
    axes: list[Axis] = [value.axes[0], axis_of(number_of(kernel.axes[1]) * attribute(node, "group", 1))]
    for axis, window, more in zip(value.axes[2:], windows, extra, strict=True):
        whole = (
            window.stride * (number_of(axis) - 1) + more + window.back + 1 - window.before - window.after
        )
        axes.append(axis_of(whole))
    translation.keep(node)
    return [Value(tuple(axes), join_reach(node, values))]


def _windows(node: onnx.NodeProto, kernels: list[int]) -> list[_Window]:
    rank = len(kernels)
    dilations = list(attribute(node, "dilations", [1] * rank))
    strides = list(attribute(node, "strides", [1] * rank))
    pads = list(attribute(node, "pads", [0] * 2 * rank))
    auto = attribute(node, "auto_pad", "NOTSET")
    windows = []
    for at, kernel in enumerate(kernels):
        before, after = pads[at], pads[at + rank]
        if auto.startswith("SAME"):
            if strides[at] != 1:
                raise Refused(f"{label(node)}: write its pads instead of auto_pad {auto}")
            whole = (kernel - 1) * dilations[at]
            small, large = whole // 2, whole - whole // 2
            before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            before = after = 0
        windows.append(_Window(kernel, dilations[at], strides[at], before, after))
    return windows


def _slid(axis: Axis, window: _Window, rounds_up: int = 0) -> Axis:
    room = number_of(axis) + window.before + window.after - window.back - 1
    steps = -(-room // window.stride) if rounds_up else room // window.stride
    return axis_of(steps + 1)


def _check_causal(node: onnx.NodeProto, value: Value, window: _Window) -> int:
    """Returns how many outputs are behind the last token."""
    if window.stride != 1:
        raise Refused(
            f"{label(node)} gives one output for {window.stride} tokens; make a token of "
            f"{window.stride} samples"
        )
    before = value.before + window.before - window.back
    after = value.after + window.after
    if before < 0 and after:
        raise Refused(
            f"{label(node)} looks {-before} token{'s' if before < -1 else ''} ahead: it is padded with "
            f"{after} behind the last one; pad {window.back} before the first one and none behind, "
            "and train it so"
        )
    if before:
        raise Refused(
            f"{label(node)} gives {abs(before)} outputs {'less' if before < 0 else 'more'} than there "
            "are tokens; "
            f"pad {window.back} before the first token and none behind"
        )
    return after


def _with_context(
    translation: Translation, node: onnx.NodeProto, value: Value, place: int, back: int
) -> str:
    """Returns the name of the tokens behind those that the state has kept."""
    source = value.padded if value.padded is not None else node.input[0]
    if back == 0:
        return source
    name, after = translation.fresh("context"), translation.fresh("context_next")
    axes = tuple(axis_of(back) if at == place else axis for at, axis in enumerate(value.axes))
    dtype = translation.dtypes.get(node.input[0]) or onnx.TensorProto.FLOAT
    translation.states.append(StatePair(name, after, axes, dtype))
    joined = translation.add("Concat", [name, source], "with_context", axis=place)
    if translation.opset < 10:
        node = onnx.helper.make_node("Slice", [joined], [after], starts=[-back], ends=[FAR], axes=[place])
        translation.nodes.append(node)
        return joined
    ends = [
        translation.integers([end], what) for end, what in ((-back, "kept"), (FAR, "end"), (place, "axis"))
    ]
    translation.nodes.append(onnx.helper.make_node("Slice", [joined, *ends], [after]))
    return joined
