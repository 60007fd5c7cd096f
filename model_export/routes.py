"""The ways from a network to a step graph, tried one after the other until one passes the gate.

    all tokens together   the network is traced on a chunk; its recurrent parts become Scans. The fastest:
                          products with the input are made for all tokens at once
    token by token        the network is traced on one token, and the whole graph is put into one Scan; what
                          cannot be traced over time (a loop in Python) can be served so
    token by token, newer the same by torch.export, which takes some networks that the older tracer does not
    one token a run       without the Scan

All files are in one piece, with our names and axes on inputs and outputs.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import onnx
import torch
from onnx import helper
from torch import Tensor

from model_export.draws import Draws, shape_of
from model_export.over_time import scan_over_time
from model_export.plain_cells import DOMAIN, CellWeights, set_one_token
from model_export.recurrent_nodes import LayerWeights, expand
from model_export.step import TIME, FlatStep, Layout, Part, Step, arranged

OPSET = 20
IR_VERSION = 10
EXAMPLE_BATCH, EXAMPLE_TIME = 3, 5

ROUTES = ("all tokens together", "token by token", "token by token, newer", "one token a run")


class StepGraph(NamedTuple):
    """A traced graph.

    Attributes:
        model: In one piece.
        layout: Its tensors' axes, in the order of its inputs (tokens, states, session inputs) and outputs.
        inputs: Names in that order.
        outputs: Names of its outputs, then of its next states.
        route: The way it was made.
        remarks: What the tracer warned of: the place where a number was taken for good.
    """

    model: onnx.ModelProto
    layout: Layout
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    route: str
    remarks: tuple[str, ...]


def names_of(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a graph's inputs and outputs: each is there once."""
    inputs: list[str] = []
    for part in (*layout.tokens, *layout.states, *layout.session):
        inputs.append(_free(part.name, inputs))
    outputs: list[str] = []
    state_names = inputs[len(layout.tokens) : len(layout.tokens) + len(layout.states)]
    for name in (*(part.name for part in layout.outputs), *(f"{name}_next" for name in state_names)):
        outputs.append(_free(name, inputs + outputs))
    return tuple(inputs), tuple(outputs)


def trace(
    step: Step, layout: Layout, layers: dict[str, CellWeights], draws: Draws, route: str
) -> StepGraph | None:
    """Traces a network one way.

    Args:
        step: With its recurrent parts in plain operators.
        layout: Of the network.
        layers: The weights of those parts.
        draws: For tokens and session inputs.
        route: One of `ROUTES`.

    Returns:
        The graph; None if this way is no other than one before.

    Raises:
        Exception: Whatever torch's exporter raises.
    """
    is_whole = route == ROUTES[0]
    if is_whole and not layout.has_time:
        return None
    flat = FlatStep(step, layout, one_token=not is_whole)
    set_one_token(flat, not is_whole)
    inputs, outputs = names_of(layout)
    given = (*flat.layout.tokens, *flat.layout.states, *flat.layout.session)
    made = (*flat.layout.outputs, *flat.layout.states)
    with _remarks() as remarks:
        tensors = _example(step, flat.layout, draws)
        if route == ROUTES[2]:
            model = _exported(flat, tensors, given, inputs, outputs)
        else:
            model = _scripted(flat, tensors, given, inputs, outputs, bool(layers) and is_whole)
    expand(model, DOMAIN, {key: _arrays(layer) for key, layer in layers.items()})
    _declare(model, dict(zip(inputs, given, strict=True)), dict(zip(outputs, made, strict=True)))
    graph_layout = flat.layout
    if route in ROUTES[1:3]:
        token_count, state_count = len(layout.tokens), len(layout.states)
        states = zip(
            inputs[token_count : token_count + state_count], outputs[len(layout.outputs) :], strict=True
        )
        model = scan_over_time(
            model, inputs[:token_count], dict(states), outputs[: len(layout.outputs)], TIME
        )
        graph_layout = Layout(
            tuple(_with_time(part) for part in graph_layout.tokens),
            graph_layout.states,
            graph_layout.session,
            tuple(_with_time(part) for part in graph_layout.outputs),
        )
    onnx.checker.check_model(model, full_check=True)
    return StepGraph(model, graph_layout, inputs, outputs, route, tuple(remarks))


def _scripted(
    flat: FlatStep,
    tensors: tuple[Tensor, ...],
    given: tuple[Part, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    own_nodes: bool,
) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        flat,
        tensors,
        file,  # type: ignore[arg-type]  # a file in memory is taken, and not declared
        dynamo=False,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={
            name: {at: axis for at, axis in enumerate(part.axes) if isinstance(axis, str)}
            for name, part in zip(inputs, given, strict=True)
        },
        custom_opsets={DOMAIN: 1} if own_nodes else {},
    )
    return onnx.load_from_string(file.getvalue())


def _exported(
    flat: FlatStep,
    tensors: tuple[Tensor, ...],
    given: tuple[Part, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> onnx.ModelProto:
    dims = {"batch": torch.export.Dim.DYNAMIC, TIME: torch.export.Dim.DYNAMIC}
    shapes = tuple(
        {at: dims[axis] for at, axis in enumerate(part.axes) if isinstance(axis, str)} for part in given
    )
    program = torch.onnx.export(
        flat,
        tensors,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(shapes,),
        external_data=False,
        verbose=False,
    )
    assert program is not None, "bug: torch.onnx.export gave no program"
    model: onnx.ModelProto = program.model_proto
    return model


def _example(step: Step, layout: Layout, draws: Draws) -> tuple[Tensor, ...]:
    tokens = [
        arranged(draws.draw(number, shape_of(part, EXAMPLE_BATCH, EXAMPLE_TIME)), part)
        for number, part in enumerate(layout.tokens)
    ]
    session = [
        arranged(draws.draw(len(tokens) + number, shape_of(part, EXAMPLE_BATCH, 1)), part)
        for number, part in enumerate(layout.session)
    ]
    states = [
        start(tensor, part, EXAMPLE_BATCH)
        for tensor, part in zip(step.example.states, layout.states, strict=True)
    ]
    return (*tokens, *states, *session)


def start(tensor: Tensor, part: Part, batch: int) -> Tensor:
    """Returns the state that so many sessions start at."""
    if "batch" not in part.axes:
        return tensor
    axis = part.axes.index("batch")
    return torch.cat([tensor.narrow(axis, 0, 1)] * batch, axis)


def _declare(model: onnx.ModelProto, given: dict[str, Part], made: dict[str, Part]) -> None:
    """Writes our axes on inputs and outputs; what the exporter noted of the rest is left out."""
    graph = model.graph
    inputs = [_info(name, part) for name, part in given.items()]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.output[:]
    graph.output.extend(_info(name, part) for name, part in made.items())
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.ClearField("doc_string")
    graph.name = "step"
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "holdfast", ""


def _info(name: str, part: Part) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=part.dtype).numpy().dtype)
    return helper.make_tensor_value_info(name, kind, list(part.axes))


def _with_time(part: Part) -> Part:
    return part._replace(axes=(TIME, *part.axes))


def _arrays(layer: CellWeights) -> LayerWeights:
    projection = layer.projection
    return LayerWeights(
        layer.kind,
        layer.inputs.numpy().T,
        layer.recurrent.numpy().T,
        layer.input_bias.numpy(),
        layer.recurrent_bias.numpy(),
        None if projection is None else projection.numpy().T,
    )


def _free(name: str, taken: list[str]) -> str:
    while name in taken:
        name += "_out"
    return name


@contextlib.contextmanager
def _remarks() -> Iterator[list[str]]:
    """Collects what the tracer warns of; what it prints is for torch's makers, and partly not by Python."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught, _silent():
        warnings.simplefilter("always")
        yield found
    found += [
        f"{warning.filename}:{warning.lineno}"
        for warning in caught
        if warning.category.__name__ == "TracerWarning" and "/torch/" not in warning.filename
    ]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Leads the descriptors of output and errors to nowhere for a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere, contextlib.ExitStack() as stack:
        for descriptor in (1, 2):
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            os.dup2(nowhere.fileno(), descriptor)
        yield
