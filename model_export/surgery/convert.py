"""One reading of a whole-sequence graph, translated to its end: the step graph and its contract."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from model_export.surgery.axes import BATCH, TIME, Axis, number_of
from model_export.surgery.graph_inputs import GraphInputs, Reading, axes_in, dims_of, start_axes
from model_export.surgery.preparing import one_line, opset_of
from model_export.surgery.rules import walk
from model_export.surgery.step_model import (
    IR_VERSION,
    axis_words,
    has_batch,
    has_time,
    info,
    lowered,
    needed,
    read_by,
    separate,
)
from model_export.surgery.translation import StatePair, Translation, constant
from model_export.surgery.value import STATE_COPY, Misread, Refused, Value, as_size

_MAX_STARTS = 32
_NO_STATE = (
    "it has no recurrent node over time (RNN, GRU, LSTM, Scan, Loop) and no causal convolution, so "
    "no token "
    "depends on those before it; there is no state to keep"
)


@dataclass(frozen=True)
class StepGraph:
    """What came of a whole-sequence graph.

    Attributes:
        model: The step graph.
        document: Its contract.
        states: Its states with their first values, without the batch axis.
        outputs: Its outputs by name: axes, and whether there is an entry per token.
        frozen: Extents with which the whole-sequence graph was exported.
        starts: Axes of its inputs for first states.
    """

    model: onnx.ModelProto
    document: dict[str, Any]
    states: tuple[tuple[StatePair, NDArray[Any]], ...]
    outputs: dict[str, Value]
    frozen: dict[str, int | None]
    starts: dict[str, tuple[Axis, ...]]


class Attempt(Exception):
    """A reading that does not hold; `done_count` nodes did.

    Attributes:
        done_count: The same.
        is_stateless: It holds, but there is nothing to keep.
        is_misread: Time and batch are elsewhere.
        extents: See `Refused`.
    """

    def __init__(self, refused: Refused, done_count: int) -> None:
        super().__init__(str(refused))
        self.done_count = done_count
        self.extents = refused.extents
        self.is_misread = isinstance(refused, Misread)
        self.is_stateless = str(refused) == _NO_STATE


def convert(
    model: onnx.ModelProto, inputs: GraphInputs, reading: Reading, time_extent: int | None = None
) -> StepGraph:
    """Translates a graph under a reading of its axes.

    Args:
        model: The graph.
        inputs: Its inputs, sorted.
        reading: Where time and batch are.
        time_extent: Tokens that the graph was exported with, where it does not declare them.

    Returns:
        The step graph.

    Raises:
        Attempt: It does not hold.
    """
    failed: Attempt | None = None
    frozen = _frozen(inputs, reading)
    frozen[TIME] = frozen[TIME] or time_extent
    for ways in _start_ways(inputs, frozen):
        translation = _begun(model, inputs, reading, ways, frozen)
        try:
            walk(translation, model.graph.node)
            return _finished(model, inputs, reading, translation)
        except Refused as error:
            attempt = Attempt(error, translation.done_count + translation.inner_count)
            if failed is None or attempt.done_count > failed.done_count:
                failed = attempt
    assert failed is not None, "bug: no way was tried"
    raise failed


def _frozen(inputs: GraphInputs, reading: Reading) -> dict[str, int | None]:
    main = next(info for info in inputs.tokens if info.name not in reading.per_session)
    dims = dims_of(main)
    places = {TIME: reading.time, BATCH: reading.batch}
    return {
        symbol: dim if at is not None and isinstance(dim := dims[at], int) and dim > 0 else None
        for symbol, at in places.items()
    }


def _start_ways(
    inputs: GraphInputs, frozen: dict[str, int | None]
) -> Iterator[dict[str, tuple[Axis, ...]]]:
    names = [info.name for info in inputs.starts]
    ways = [start_axes(info, frozen[BATCH]) for info in inputs.starts]
    for way in itertools.islice(itertools.product(*ways), _MAX_STARTS):
        yield dict(zip(names, way, strict=True))


def _begun(
    model: onnx.ModelProto,
    inputs: GraphInputs,
    reading: Reading,
    starts: dict[str, tuple[Axis, ...]],
    frozen: dict[str, int | None],
) -> Translation:
    main = next(info for info in inputs.tokens if info.name not in reading.per_session)
    places = {TIME: reading.time} | ({} if reading.batch is None else {BATCH: reading.batch})
    translation = Translation(
        frozen, opset_of(model), _dtypes(model), _names(model.graph), (main.name, places)
    )
    for token in inputs.tokens:
        try:
            axes = axes_in(token, reading)
        except Refused as error:
            raise Attempt(error, -1) from None
        reach = "constant" if token.name in reading.per_session else "each"
        translation.values[token.name] = Value(
            axes, "each" if reach == "each" else "constant", token=token.name
        )
    for name, axes in starts.items():
        translation.values[name] = Value(axes)
    whole = np.empty(1, object)
    whole[0] = as_size(TIME)
    for name in inputs.lengths:
        translation.values[name] = Value(((BATCH,),), "size", sizes=whole)
    for weight in model.graph.initializer:
        translation.values[weight.name] = constant(numpy_helper.to_array(weight))
    return translation


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Returns element types, as far as they can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # noqa: BLE001 -- a layout that onnx itself infers wrongly is no reason to refuse
        graph = model.graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    found = {one.name: one.type.tensor_type.elem_type for one in infos}
    return found | {weight.name: weight.data_type for weight in graph.initializer}


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {one.name for one in (*graph.input, *graph.output, *graph.value_info)}
    names |= {weight.name for weight in graph.initializer}
    for node in graph.node:
        names |= set(node.input) | set(node.output)
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.GRAPH:
                names |= _names(entry.g)
    return names


def _finished(
    model: onnx.ModelProto, inputs: GraphInputs, reading: Reading, translation: Translation
) -> StepGraph:
    if not translation.states:
        raise Refused(_NO_STATE)
    for pair in translation.states:
        if any(len(axis) > 1 for axis in pair.axes):
            raise Refused(
                f"state {pair.input!r} has rows and numbers in one axis; reshape it behind the layer"
            )
    outputs = _outputs(model, inputs, translation)
    states = tuple((pair, _first_value(model, inputs, translation, pair)) for pair in translation.states)
    step = _assembled(model, inputs, translation, outputs)
    document = _document(inputs, reading, translation, outputs, states)
    starts = {one.name: translation.here(one.name).axes for one in inputs.starts}
    return StepGraph(step, document, states, outputs, dict(translation.frozen), starts)


def _outputs(model: onnx.ModelProto, inputs: GraphInputs, translation: Translation) -> dict[str, Value]:
    """Returns the outputs that are kept: no constants, nor states whose first value the caller gave."""
    found: dict[str, Value] = {}
    for output in model.graph.output:
        value = translation.here(output.name)
        if value.reach in ("each", "last"):
            _, found[output.name] = separate(translation, output.name, value)
    copies = [name for name, value in found.items() if value.token == STATE_COPY]
    if inputs.starts and len(copies) < len(found):
        for name in copies:
            del found[name]
    for name, value in found.items():
        if value.reach == "each" and not has_time(value):
            raise Refused(f"output {name!r} has lost its time axis")
    if not found:
        raise Refused("no output depends on the tokens, so there is nothing to stream")
    return found


def _first_value(
    model: onnx.ModelProto, inputs: GraphInputs, translation: Translation, pair: StatePair
) -> NDArray[Any]:
    """Computes what a state starts with; it may not differ from row to row.

    Returns:
        The value without its batch axis.
    """
    dtype = helper.tensor_dtype_to_np_dtype(pair.dtype)
    place = next((at for at, axis in enumerate(pair.axes) if BATCH in axis), None)
    shape = [number_of(axis) for axis in pair.axes if BATCH not in axis]
    if not pair.start:
        return np.zeros(shape, dtype)
    found = _computed(model, inputs, translation, pair.start)
    if pair.is_turned:
        found = np.transpose(found, [1, 0, 2])
    if place is not None:
        first = np.take(found, 0, place)
        if not np.array_equal(np.broadcast_to(np.expand_dims(first, place), found.shape), found):
            raise Refused(f"first state {pair.start!r} differs from row to row; give one for all rows")
        found = first
    if list(found.shape) != shape:
        raise Refused(f"first state {pair.start!r} has shape {list(found.shape)}, expected {shape}")
    return np.asarray(found, dtype)


def _computed(
    model: onnx.ModelProto, inputs: GraphInputs, translation: Translation, name: str
) -> NDArray[Any]:
    value = translation.here(name)
    if value.data is not None:
        return value.data
    nodes = needed(translation.nodes, {name})
    read = {one for node in nodes for one in read_by(node)} | {name}
    feed: dict[str, NDArray[Any]] = {}
    for pair in translation.states:
        if pair.input in read:
            shape = [2 if BATCH in axis else number_of(axis) for axis in pair.axes]
            feed[pair.input] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(pair.dtype))
    for one in (*inputs.tokens, *inputs.starts):
        if one.name in read:
            axes = translation.here(one.name).axes
            shape = [2 if BATCH in axis else 1 if TIME in axis else number_of(axis) for axis in axes]
            dtype = helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
            feed[one.name] = np.zeros(shape, dtype)
    if name in feed:
        return feed[name]
    weights = [weight for weight in _all_weights(model, translation) if weight.name in read]
    graph = helper.make_graph(
        nodes,
        "start",
        [onnx.ValueInfoProto(name=one) for one in feed],
        [onnx.ValueInfoProto(name=name)],
        weights,
    )
    alone = helper.make_model(graph, opset_imports=list(model.opset_import))
    try:
        results = ReferenceEvaluator(alone).run(None, feed)
    except Exception as error:  # noqa: BLE001 -- the reference raises what numpy raises
        raise Refused(f"first state {name!r} cannot be computed: {one_line(error)}") from None
    return np.asarray(next(iter(results)))


def _all_weights(model: onnx.ModelProto, translation: Translation) -> list[onnx.TensorProto]:
    return [*model.graph.initializer, *translation.weights.values()]


def _assembled(
    model: onnx.ModelProto, inputs: GraphInputs, translation: Translation, outputs: dict[str, Value]
) -> onnx.ModelProto:
    pairs = translation.states
    nodes = needed(translation.nodes, {*outputs, *(pair.output for pair in pairs)})
    read = {name for node in nodes for name in read_by(node)}
    unread = [token.name for token in inputs.tokens if token.name not in read]
    if unread:
        raise Refused(f"input {unread[0]!r} is read by nothing that is left; take it out of the graph")
    dtypes = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    graph = helper.make_graph(
        nodes,
        model.graph.name or "step",
        [
            *(
                info(token.name, token.type.tensor_type.elem_type, translation.here(token.name).axes)
                for token in inputs.tokens
            ),
            *(info(pair.input, pair.dtype, pair.axes) for pair in pairs),
        ],
        [
            *(info(name, dtypes[name], value.axes) for name, value in outputs.items()),
            *(info(pair.output, pair.dtype, pair.axes) for pair in pairs),
        ],
        [weight for weight in _all_weights(model, translation) if weight.name in read],
    )
    step = helper.make_model(graph, opset_imports=list(model.opset_import), producer_name="holdfast")
    step.ir_version = model.ir_version or IR_VERSION
    return lowered(step)


def _document(
    inputs: GraphInputs,
    reading: Reading,
    translation: Translation,
    outputs: dict[str, Value],
    states: tuple[tuple[StatePair, NDArray[Any]], ...],
) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    for token in inputs.tokens:
        entry: dict[str, Any] = {"name": token.name, "axes": axis_words(translation.here(token.name).axes)}
        (sessions if token.name in reading.per_session else tokens).append(entry)
    size = max(translation.vocabularies.values(), default=0)
    for entry in tokens:
        own = translation.vocabularies.get(str(entry["name"]))
        if own and len(tokens) > 1:
            entry["size"] = own
    document: dict[str, Any] = {"contract_version": 1, "input": tokens}
    every = [*(value.axes for value in outputs.values()), *(pair.axes for pair, _ in states)]
    if reading.batch is None or not all(has_batch(axes) for axes in every):
        document["rows_per_run"] = 1
    document["state"] = [_state(pair, first) for pair, first in states]
    document["output"] = [
        {"name": name, "axes": axis_words(value.axes), "role": _role(translation, name, value, size)}
        for name, value in outputs.items()
    ]
    if sessions:
        document["session_input"] = sessions
    if size and len(tokens) == 1:
        document["vocabulary"] = {"kind": "ids", "size": size}
    return document


def _state(pair: StatePair, first: NDArray[Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": pair.input, "input": pair.input, "output": pair.output}
    entry["axes"] = axis_words(pair.axes)
    entry["initial"] = first.tolist() if first.any() else 0
    return entry


def _role(translation: Translation, name: str, value: Value, size: int) -> str:
    if not size or not value.axes or value.axes[-1] != (size,):
        return "raw"
    makers = {output: node for node in translation.nodes for output in node.output}
    while name in makers and makers[name].op_type in (
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
    ):
        name = makers[name].input[0]
    op = makers[name].op_type if name in makers else ""
    return {"Softmax": "probs", "LogSoftmax": "log_probs"}.get(op, "logits")
