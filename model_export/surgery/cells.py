"""The rule for ONNX's own recurrent layers: RNN, GRU, LSTM. Their states become inputs and outputs.

onnxruntime refuses layout 1 (batch first), so such a node is rewritten: transposed before and behind.
"""

from collections.abc import Sequence

import onnx
from onnx import helper

from model_export.surgery.axes import BATCH_AXIS, ONE, TIME, TIME_AXIS, Axis, Size, axis_of, number_of
from model_export.surgery.translation import StatePair, Translation, attribute, check_plain, label
from model_export.surgery.value import STATE_COPY, Misread, Refused, Value, flat, in_words

Values = Sequence[Value | None]

STATE_NAMES = {"RNN": ("h",), "GRU": ("h",), "LSTM": ("h", "c")}
LENGTHS, FIRST_START = 4, 5
"""Places of sequence_lens and of initial_h among the inputs; initial_c comes next, then the peepholes."""
PEEPHOLES = 7
_WEIGHTS = (1, 2, 3, PEEPHOLES)


def cell(translation: Translation, node: onnx.NodeProto, values: Values) -> list[Value]:
    """A layer over time."""
    check_plain(node, values)
    padded = [*values, *([None] * (PEEPHOLES + 1 - len(values)))]
    x = padded[0]
    assert x is not None, "bug: a recurrent layer without tokens"
    _check_forward(node)
    for place in _WEIGHTS:
        weight = padded[place]
        if weight is not None and weight.reach != "constant":
            raise Refused(f"{label(node)}: its weight {node.input[place]!r} is computed from the tokens")
    layout = attribute(node, "layout", 0)
    if x.rank != 3:
        raise Refused(f"{label(node)} reads {in_words(x.axes)}, expected time, batch and features")
    time_at, batch_at = (1, 0) if layout else (0, 1)
    batch = x.axes[batch_at]
    recurrent = padded[2]
    assert recurrent is not None, "bug: a recurrent layer without recurrent weights"
    hidden = axis_of(attribute(node, "hidden_size") or number_of(recurrent.axes[-1]))
    if recurrent.axes[-1] != hidden:
        raise Refused(
            f"{label(node)} has {number_of(hidden)} units and recurrent weights for "
            f"{number_of(recurrent.axes[-1])}: a projection, which ONNX's own layers do not have; export "
            "one step with holdfast model export"
        )
    if translation.parent is not None:
        return _inside(translation, node, padded, batch, hidden)
    if x.axes[time_at] != TIME_AXIS or batch not in (BATCH_AXIS, ONE):
        wanted = "[batch, time, …]" if layout else "[time, batch, …]"
        raise Misread(f"{label(node)} reads {in_words(x.axes)}, expected {wanted} of all tokens")
    _check_lengths(translation, node, padded[LENGTHS])
    return _rewritten(translation, node, padded, batch, hidden)


def _check_forward(node: onnx.NodeProto) -> None:
    direction = attribute(node, "direction", "forward")
    if direction != "forward":
        raise Refused(
            f"{label(node)} is {direction}: it starts with the last token, which a stream has not got "
            "yet; train it "
            "with direction forward"
        )


def _check_lengths(translation: Translation, node: onnx.NodeProto, lengths: Value | None) -> None:
    """Lengths may be those of full sequences only; a stream is as long as it is."""
    if lengths is None:
        return
    found = flat(lengths)
    whole = (Size((TIME,)), translation.frozen.get(TIME))
    if found is None or any(extent is None or extent not in whole for extent in found):
        raise Refused(
            f"{label(node)}: sequence_lens cuts rows short, which a stream does by ending; leave the "
            "input out"
        )


def _rewritten(
    translation: Translation, node: onnx.NodeProto, values: Values, batch: Axis, hidden: Axis
) -> list[Value]:
    layout = attribute(node, "layout", 0)
    inputs = [*node.input, *([""] * (PEEPHOLES + 1 - len(node.input)))]
    if layout:
        inputs[0] = translation.add("Transpose", [inputs[0]], f"{inputs[0]}_time_first", perm=[1, 0, 2])
    inputs[LENGTHS] = ""
    dtype = translation.dtypes.get(node.input[0]) or onnx.TensorProto.FLOAT
    names = STATE_NAMES[node.op_type]
    nexts = []
    for place, name in enumerate(names, start=FIRST_START):
        start = inputs[place]
        _check_start(node, values[place])
        inputs[place] = translation.fresh(name)
        nexts.append(translation.fresh(f"{inputs[place]}_next"))
        axes = (ONE, batch, hidden)
        translation.states.append(StatePair(inputs[place], nexts[-1], axes, dtype, start, bool(layout)))
    while not inputs[-1]:
        inputs.pop()
    wanted = [*node.output, *([""] * (len(names) + 1 - len(node.output)))]
    every = wanted[0] and (translation.fresh(f"{wanted[0]}_time_first") if layout else wanted[0])
    copy = helper.make_node(node.op_type, inputs, [every, *nexts], name=node.name, domain=node.domain)
    copy.attribute.extend(
        entry for entry in node.attribute if entry.name not in ("layout", "output_sequence")
    )
    translation.keep(copy)
    if layout and every:
        translation.nodes.append(helper.make_node("Transpose", [every], [wanted[0]], perm=[2, 0, 1, 3]))
    for name, after in zip(wanted[1:], nexts, strict=True):
        if name and layout:
            translation.nodes.append(helper.make_node("Transpose", [after], [name], perm=[1, 0, 2]))
        elif name:
            translation.nodes.append(helper.make_node("Identity", [after], [name]))
    last = (batch, ONE, hidden) if layout else (ONE, batch, hidden)
    return [
        Value((batch, TIME_AXIS, ONE, hidden) if layout else (TIME_AXIS, ONE, batch, hidden), "each"),
        *(Value(last, "last", token=STATE_COPY) for _ in names),
    ][: len(node.output)]


def _check_start(node: onnx.NodeProto, start: Value | None) -> None:
    if start is not None and start.reach != "constant":
        raise Refused(
            f"{label(node)} starts from a state that is computed from tokens (an encoder before a "
            "decoder); export "
            "the decoder by itself, and give it that state when a session is opened"
        )


def _inside(
    translation: Translation, node: onnx.NodeProto, values: Values, batch: Axis, hidden: Axis
) -> list[Value]:
    """A layer within a loop runs over one token, from a state of the loop."""
    x, start = values[0], values[FIRST_START]
    if attribute(node, "layout", 0) or x is None or x.axes[0] != ONE or start is None:
        raise Refused(f"{label(node)} runs over something else than the tokens, within a loop")
    translation.keep(node)
    last = (ONE, batch, hidden)
    axes = [(ONE, *last), *(last for _ in STATE_NAMES[node.op_type])]
    return [Value(one, "here") for one in axes][: len(node.output)]
