"""Makes a step graph smaller: weights as int8, states as float16. Rows stay independent. No torch.

`int8` keeps each large weight as int8 with one float32 scale per output channel: a quarter of the file. The
scales are constants, and onnxruntime unpacks the weights once, when it loads the graph, so a run costs what
it cost. Faster it is not: the 8-bit products that onnxruntime would make of a DequantizeLinear and a MatMul
round what they multiply, and their results differ by 1e-3 with the number of rows that a run has (the
server's trial refuses that); with scales that a run computes for all of its rows, as dynamic quantisation
has them, rows see one another outright.

`float16_state` casts states where they enter and leave the graph, which halves a session's record. Within a
Scan or Loop the state is rounded after every token, so that it does not matter how tokens are divided into
runs; ONNX's own RNN, GRU and LSTM cannot do that, and round once per run.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from model_export.surgery.preparing import opset_of
from model_export.surgery.translation import attribute
from model_export.surgery.value import Refused

LEAST_VALUES = 1024
"""Smaller weights are not worth a scale."""

LEAST_OPSET = 13
"""What is written here means the same in all later versions."""

_MOST = 127
_WEIGHTS: dict[str, dict[int, int]] = {
    "MatMul": {1: -1},
    "Gather": {0: 0},
    "Conv": {1: 0},
    "RNN": {1: 1, 2: 1},
    "GRU": {1: 1, 2: 1},
    "LSTM": {1: 1, 2: 1},
}
"""Operator -> place of a weight -> its axis of output channels; Gemm's follows from its attributes."""


def quantise(
    model: onnx.ModelProto,
    document: Mapping[str, Any],
    *,
    int8: bool = False,
    float16_state: bool = False,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns a smaller step graph and its contract.

    Args:
        model: A step graph with float32 weights and states.
        document: Its contract.
        int8: Keeps weights as int8.
        float16_state: Keeps states as float16.

    Raises:
        Refused: There is nothing to make smaller, or the graph is too old for it.
    """
    if opset_of(model) < LEAST_OPSET and int8:
        raise Refused(f"its operators are of version {opset_of(model)}; int8 needs {LEAST_OPSET} or later")
    copy, contract = onnx.ModelProto(), deepcopy(dict(document))
    copy.CopyFrom(model)
    del copy.metadata_props[:]  # the contract is beside it
    del copy.graph.value_info[:]
    if int8 and not _weights_to_int8(copy.graph):
        raise Refused(f"it has no float32 weight of {LEAST_VALUES} values or more; int8 would save nothing")
    if float16_state and not _states_to_float16(copy.graph, contract):
        raise Refused("it has no state of float32 or float64, which float16 could halve")
    return copy, contract


def _weights_to_int8(graph: onnx.GraphProto) -> int:
    """Replaces weights of a graph and of the bodies in it; returns how many."""
    taken = [use for scope in _scopes(graph) for use in _uses(scope)]
    large = {
        weight.name: weight
        for scope in _scopes(graph)
        for weight in scope.initializer
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= LEAST_VALUES
    }
    axes = {use.weight: use.axis for use in reversed(taken) if use.weight in large}
    packed = {
        name: per_channel(numpy_helper.to_array(large[name]), axis % len(large[name].dims))
        for name, axis in axes.items()
    }
    for scope in list(_scopes(graph)):
        _replace(scope, packed, axes)
    return len(packed)


def _replace(
    scope: onnx.GraphProto,
    packed: Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]],
    axes: Mapping[str, int],
) -> None:
    """Puts int8 weights in place of float32 ones, and unpacks them in front of all nodes."""
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for weight in scope.initializer:
        if weight.name not in packed:
            kept.append(weight)
            continue
        values, scales = packed[weight.name]
        kept.append(numpy_helper.from_array(values, f"{weight.name}_int8"))
        kept.append(numpy_helper.from_array(scales, f"{weight.name}_scale"))
        nodes += _unpacked(weight.name, values.ndim, axes[weight.name] % values.ndim, kept)
    nodes += scope.node
    del scope.initializer[:]
    scope.initializer.extend(kept)
    del scope.node[:]
    scope.node.extend(nodes)


def _unpacked(name: str, rank: int, axis: int, kept: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Returns what onnxruntime computes once, when it loads the graph (a DequantizeLinear it would not)."""
    shape = [-1 if at == axis else 1 for at in range(rank)]
    kept.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_scale_shape"))
    return [
        helper.make_node("Cast", [f"{name}_int8"], [f"{name}_wide"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [f"{name}_scale", f"{name}_scale_shape"], [f"{name}_scales"]),
        helper.make_node("Mul", [f"{name}_wide", f"{name}_scales"], [name]),
    ]


def per_channel(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds to int8 with one scale for each entry of an axis; a channel of zeros has scale 1.

    Returns:
        int8 of the same shape, and the scales.
    """
    others = tuple(at for at in range(values.ndim) if at != axis)
    scales = np.abs(values).max(axis=others).astype(np.float32) / np.float32(_MOST)
    scales[scales == 0] = 1
    shape = [-1 if at == axis else 1 for at in range(values.ndim)]
    return np.rint(values / scales.reshape(shape)).clip(-_MOST, _MOST).astype(np.int8), scales


class _Use(NamedTuple):
    """A tensor that stands in the place of a weight, and its axis of output channels there."""

    weight: str
    axis: int


def _uses(scope: onnx.GraphProto) -> Iterator[_Use]:
    for node in scope.node:
        places = _WEIGHTS.get(node.op_type, {})
        if node.op_type == "Gemm":
            places = {1: 0 if attribute(node, "transB", 0) else 1}
        if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
            continue
        for place, axis in places.items():
            if place < len(node.input):
                yield _Use(node.input[place], axis)


def _scopes(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.GRAPH:
                yield from _scopes(entry.g)


def _states_to_float16(graph: onnx.GraphProto, contract: dict[str, Any]) -> int:
    """Casts states at the graph's border; returns how many."""
    inputs = {info.name: info for info in graph.input}
    outputs = {info.name: info for info in graph.output}
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for state in contract["state"]:
        taken, given = inputs[state["input"]], outputs[state["output"]]
        wide = taken.type.tensor_type.elem_type
        if wide not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue
        before.append(helper.make_node("Cast", [f"{taken.name}_float16"], [taken.name], to=wide))
        after.append(
            helper.make_node("Cast", [given.name], [f"{given.name}_float16"], to=TensorProto.FLOAT16)
        )
        for info in (taken, given):
            info.name += "_float16"
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
        state["input"], state["output"] = taken.name, given.name
        state.pop("dtype", None)  # in a contract from metadata
    for node in graph.node:
        if node.op_type in ("Scan", "Loop"):
            _round_in_body(node, {one.output[0] for one in before})
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(before)


def _round_in_body(node: onnx.NodeProto, states: set[str]) -> None:
    """Rounds the states of a loop after every token."""
    body: onnx.GraphProto = attribute(node, "body")
    first = 2 if node.op_type == "Loop" else 0
    offset = 1 if node.op_type == "Loop" else 0
    for at, name in enumerate(node.input[first:]):
        if name not in states:
            continue
        result = body.output[offset + at]
        narrow, rounded = f"{result.name}_float16", f"{result.name}_rounded"
        wide = result.type.tensor_type.elem_type or TensorProto.FLOAT
        body.node.append(helper.make_node("Cast", [result.name], [narrow], to=TensorProto.FLOAT16))
        body.node.append(helper.make_node("Cast", [narrow], [rounded], to=wide))
        result.name = rounded
    for entry in node.attribute:
        if entry.name == "body":
            entry.g.CopyFrom(body)
