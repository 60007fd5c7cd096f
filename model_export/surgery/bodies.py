"""Rules for loops over time: Scan, and Loop with a token picked in each turn. Their states come out.

What runs in a loop is a translation of its own, with tensors of one token. It may read constants from
around it, and the present token of a sequence, and nothing else; so a loop that goes forward is causal.
Which axis of a state counts rows is found by trying: the loop has to give back what it takes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from model_export.surgery.axes import (
    BATCH,
    BATCH_AXIS,
    HERE,
    ONE,
    TIME,
    TIME_AXIS,
    Axis,
    Size,
    is_fixed,
    is_same,
    number_of,
)
from model_export.surgery.translation import (
    StatePair,
    Translation,
    attribute,
    check_plain,
    constant,
    label,
)
from model_export.surgery.value import STATE_COPY, Misread, Refused, Value, flat, in_words

Values = Sequence[Value | None]
Run = Callable[[Translation, Sequence[onnx.NodeProto]], None]
"""Translates nodes one after the other."""

_MAX_TRIED = 64


class _Body(NamedTuple):
    """A translated body.

    Attributes:
        graph: To stand in the step graph.
        outputs: What is known of its outputs.
    """

    graph: onnx.GraphProto
    outputs: list[Value]


def scan(translation: Translation, node: onnx.NodeProto, values: Values, run: Run) -> list[Value]:
    """A Scan."""
    check_plain(node, values)
    _check_outermost(translation, node)
    is_old = translation.opset < 9
    names = list(node.input)[1 if is_old else 0 :]
    given = list(values)[1 if is_old else 0 :]
    if is_old and values[0] is not None:
        raise Refused(
            f"{label(node)}: sequence_lens cuts rows short, which a stream does by ending; leave it out"
        )
    taken_count = attribute(node, "num_scan_inputs")
    state_count = len(given) - taken_count
    _check_directions(node, is_old)
    places = list(attribute(node, "scan_input_axes", [1 if is_old else 0] * taken_count))
    tokens = []
    for value, place in zip(given[state_count:], places, strict=True):
        assert value is not None, "bug: a Scan without a sequence"
        tokens.append(
            Value(_without_time(node, value, place % value.rank, is_old), "here", token=value.token)
        )
    body = attribute(node, "body")

    def states_of(way: tuple[tuple[Axis, ...], ...]) -> list[Value]:
        return [Value(axes[1:] if is_old else axes, "here") for axes in way]

    way, made = _settled(
        translation, node, names[:state_count], given[:state_count], body, tokens, states_of, run
    )
    inputs = _state_inputs(translation, node, names[:state_count], way)
    offset = 1 if is_old else 0
    replaced = {offset + at: pair.input for at, pair in enumerate(inputs)}
    _emit(translation, node, replaced, made.graph, inputs)
    scanned = made.outputs[state_count:]
    outs = list(attribute(node, "scan_output_axes", [1 if is_old else 0] * len(scanned)))
    results = [Value(axes, "last", token=STATE_COPY) for axes in way]
    for value, place in zip(scanned, outs, strict=True):
        axes = list((BATCH_AXIS, *value.axes) if is_old else value.axes)
        axes.insert(place % (len(axes) + 1), TIME_AXIS)
        results.append(Value(tuple(axes), "each"))
    return results


def _without_time(node: onnx.NodeProto, value: Value, place: int, is_old: bool) -> tuple[Axis, ...]:
    if value.axes[place] != TIME_AXIS or (is_old and value.axes[0] not in (BATCH_AXIS, ONE)):
        raise Misread(
            f"{label(node)} runs over axis {place} of {in_words(value.axes)}, which is not that of "
            "the tokens"
        )
    axes = tuple(axis for at, axis in enumerate(value.axes) if at != place)
    return axes[1:] if is_old else axes


def _check_directions(node: onnx.NodeProto, is_old: bool) -> None:
    named = ("directions",) if is_old else ("scan_input_directions", "scan_output_directions")
    if any(any(attribute(node, name, [])) for name in named):
        raise Refused(
            f"{label(node)} is reverse: it starts with the last token, which a stream has not got "
            "yet; scan forward"
        )


def _check_outermost(translation: Translation, node: onnx.NodeProto) -> None:
    if translation.parent is not None:
        raise Refused(
            f"{label(node)} is a loop within a loop; write the inner one out, its extent is fixed"
        )


def loop(translation: Translation, node: onnx.NodeProto, values: Values, run: Run) -> list[Value]:
    """A Loop that turns once for each token."""
    _check_outermost(translation, node)
    check_plain(node, values)
    count = flat(values[0]) if values[0] is not None else None
    frozen = translation.frozen.get(TIME)
    if count is None or count[0] is None or count[0] not in (Size((TIME,)), frozen):
        raise Refused(
            f"{label(node)} does not iterate once for each token of a time axis, so it is not a recurrence "
            "over a stream; "
            "loop over the extent of the input's time axis"
        )
    _check_condition(node, values[1])
    body: onnx.GraphProto = attribute(node, "body")
    number = np.empty((), object)
    number[()] = Size((HERE,))
    head = [Value((), "size", sizes=number), Value((), "constant")]
    names, given = list(node.input)[2:], list(values)[2:]

    def states_of(way: tuple[tuple[Axis, ...], ...]) -> list[Value]:
        return [*head, *(Value(axes, "here") for axes in way)]

    way, made = _settled(translation, node, names, given, body, [], states_of, run, skipped=1)
    inputs = _state_inputs(translation, node, names, way)
    replaced = {2 + at: pair.input for at, pair in enumerate(inputs)}
    if count[0] == frozen and not isinstance(count[0], Size):
        scalar = translation.integers([], "scalar")
        replaced[0] = translation.add("Reshape", [translation.count(TIME), scalar], "turns")
    _emit(translation, node, replaced, made.graph, inputs)
    results = [Value(axes, "last", token=STATE_COPY) for axes in way]
    results += [Value((TIME_AXIS, *value.axes), "each") for value in made.outputs[1 + len(names) :]]
    return results


def _check_condition(node: onnx.NodeProto, condition: Value | None) -> None:
    """A loop that may end early gives fewer outputs than tokens."""
    if condition is not None and not (condition.data is not None and bool(np.all(condition.data))):
        raise Refused(f"{label(node)} may end before the last token; loop over all of them")
    body: onnx.GraphProto = attribute(node, "body")
    goes_on, name = body.input[1].name, body.output[0].name
    makers = {output: one for one in body.node for output in one.output}
    constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in body.initializer}
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    if name in makers and makers[name].op_type == "Constant":
        constants[name] = onnx.numpy_helper.to_array(attribute(makers[name], "value"))
    if name != goes_on and not (name in constants and bool(np.all(constants[name]))):
        raise Refused(f"{label(node)} may end before the last token; loop over all of them")


def _settled(
    translation: Translation,
    node: onnx.NodeProto,
    names: Sequence[str],
    starts: Values,
    body: onnx.GraphProto,
    tokens: list[Value],
    states_of: Callable[[tuple[tuple[Axis, ...], ...]], list[Value]],
    run: Run,
    skipped: int = 0,
) -> tuple[tuple[tuple[Axis, ...], ...], _Body]:
    """Finds axes of the states with which the body gives back what it takes."""
    for start in starts:
        if start is not None and start.reach != "constant":
            raise Refused(
                f"{label(node)} starts from a state that is computed from tokens; give it when a "
                "session is opened"
            )
    ways = [list(_readings(translation, start)) for start in starts]
    refused: Refused | None = None
    for way in itertools.islice(itertools.product(*ways), _MAX_TRIED):
        try:
            made = _translated(translation, body, [*states_of(way), *tokens], run)
        except Refused as error:
            refused = refused or error
            continue
        given = states_of(way)[-len(way) :] if way else []
        after = made.outputs[skipped : skipped + len(way)]
        differing = [
            at for at, (one, two) in enumerate(zip(given, after, strict=True)) if one.axes != two.axes
        ]
        if not differing:
            return way, made
        at = differing[0]
        shown = f"{in_words(given[at].axes)} and gives {in_words(after[at].axes)}"
        refused = refused or Refused(
            f"{label(node)}: state {names[at]!r} takes {shown}: a state that grows cannot stream; "
            "keep a ring "
            "buffer and a counter"
        )
    raise refused or Refused(f"{label(node)} has no state")


def _readings(translation: Translation, start: Value | None) -> Iterator[tuple[Axis, ...]]:
    """Yields what the axes of a state may stand for, most likely first."""
    assert start is not None, "bug: a loop without a first state"
    if not any(BATCH in axis for axis in start.axes):
        for place, axis in enumerate(start.axes):
            frozen = translation.frozen.get(BATCH)
            fits = (
                frozen is not None
                and is_fixed(axis)
                and is_same(_extent(axis), BATCH_AXIS, translation.frozen)
            )
            if fits:
                yield (*start.axes[:place], BATCH_AXIS, *start.axes[place + 1 :])
    yield start.axes


def _extent(axis: Axis) -> int:
    return int(axis[0]) if axis else 1


def _translated(
    translation: Translation, body: onnx.GraphProto, inputs: Sequence[Value], run: Run
) -> _Body:
    inner = Translation(
        translation.frozen,
        translation.opset,
        translation.dtypes,
        translation.taken,
        translation.counted,
        parent=translation,
        vocabularies=translation.vocabularies,
    )
    for weight in body.initializer:
        inner.values[weight.name] = constant(onnx.numpy_helper.to_array(weight))
        inner.weights[weight.name] = weight
    for info, value in zip(body.input, inputs, strict=True):
        inner.values[info.name] = value
    try:
        run(inner, body.node)
    finally:
        translation.inner_count = max(translation.inner_count, inner.done_count)
    outputs = [inner.here(info.name) for info in body.output]
    for info, value in zip(body.output, outputs, strict=True):
        if value.reach in ("each", "last"):
            raise Refused(f"a loop gives {info.name!r}, which is a tensor of all tokens around it")
    graph = helper.make_graph(
        inner.nodes,
        body.name or "step",
        [_declared(info, value) for info, value in zip(body.input, inputs, strict=True)],
        [_declared(info, value) for info, value in zip(body.output, outputs, strict=True)],
        list(inner.weights.values()),
    )
    return _Body(graph, outputs)


def _declared(info: onnx.ValueInfoProto, value: Value) -> onnx.ValueInfoProto:
    """Returns a tensor's declaration with free axes, where the original may have a fixed batch."""
    dtype = info.type.tensor_type.elem_type
    if not dtype:
        return onnx.ValueInfoProto(name=info.name)
    shape: list[int | str | None] = [
        number_of(axis) if is_fixed(axis) else str(axis[0]) if len(axis) == 1 else None
        for axis in value.axes
    ]
    return helper.make_tensor_value_info(info.name, dtype, shape)


def _state_inputs(
    translation: Translation,
    node: onnx.NodeProto,
    names: Sequence[str],
    way: tuple[tuple[Axis, ...], ...],
) -> list[StatePair]:
    body: onnx.GraphProto = attribute(node, "body")
    infos = list(body.input)[2:] if node.op_type == "Loop" else list(body.input)
    pairs = []
    for name, info, axes in zip(names, infos, way, strict=False):
        dtype = translation.dtypes.get(name) or info.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
        state = translation.fresh(f"state_{name}")
        pairs.append(StatePair(state, translation.fresh(f"{state}_next"), axes, dtype, name))
    translation.states.extend(pairs)
    return pairs


def _emit(
    translation: Translation,
    node: onnx.NodeProto,
    replaced: dict[int, str],
    body: onnx.GraphProto,
    pairs: Sequence[StatePair],
) -> None:
    translation.replace(node, replaced, body=body)
    copy = translation.nodes[-1]
    for at, pair in enumerate(pairs):
        wanted = copy.output[at]
        copy.output[at] = pair.output
        if wanted:
            translation.nodes.append(helper.make_node("Identity", [pair.output], [wanted]))
