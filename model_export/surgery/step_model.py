"""Writes the step graph: only what outputs and states need, with free axes and versions servers know."""

from collections.abc import Collection, Iterable, Sequence

import onnx
from onnx import TensorProto, helper

from model_export.surgery.axes import BATCH, TIME, Axis, is_fixed, number_of
from model_export.surgery.shaping import free_shape
from model_export.surgery.translation import Translation
from model_export.surgery.value import Refused, Value

IR_VERSION = 10
"""onnxruntime 1.22 reads it."""
LEAST_OPSET, MOST_OPSET = 13, 23


def axis_words(axes: Sequence[Axis]) -> list[int | str]:
    """Returns axes as `contract.toml` and value infos have them."""
    return [number_of(axis) if is_fixed(axis) else str(axis[0]) for axis in axes]


def separate(translation: Translation, name: str, value: Value) -> tuple[str, Value]:
    """Returns an output whose axes are time, batch and numbers, each by itself."""
    if value.before or value.after:
        raise Refused(f"output {name!r} has {value.after} entries behind the last token; cut them off")
    if all(len(axis) < 2 for axis in value.axes):
        return name, value
    axes = tuple(
        (factor,) if not isinstance(factor, int) else ((factor,) if factor > 1 else ())
        for axis in value.axes
        for factor in (axis or (1,))
    )
    shape = free_shape(translation, axes, value.axes)
    inner = translation.fresh(f"{name}_rows")
    _rename(translation.nodes, name, inner)
    translation.nodes.append(helper.make_node("Reshape", [inner, shape], [name]))
    return name, Value(axes, value.reach, token=value.token)


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new


def needed(nodes: Sequence[onnx.NodeProto], wanted: Collection[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that the wanted tensors depend on, in their order."""
    names = set(wanted)
    kept = []
    for node in reversed(nodes):
        if names.intersection(node.output):
            kept.append(node)
            names |= read_by(node)
    return kept[::-1]


def read_by(node: onnx.NodeProto) -> set[str]:
    """Returns the tensors that a node reads, those of its bodies among them."""
    names = set(node.input)
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            own = {name for inner in entry.g.node for name in inner.output}
            own |= {info.name for info in entry.g.input} | {weight.name for weight in entry.g.initializer}
            read = {name for inner in entry.g.node for name in read_by(inner)}
            names |= (read | {info.name for info in entry.g.output}) - own
    return names - {""}


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stamps a model with the least version of operators that says the same, and of the file format.

    An operator means the same in all versions since its last change, and servers need not know the newest.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            since = {_since(node, entry.version) for node in _all_nodes(model.graph)}
            entry.version = min(entry.version, max(since | {min(LEAST_OPSET, entry.version)}))
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def _since(node: onnx.NodeProto, version: int) -> int:
    return int(onnx.defs.get_schema(node.op_type, version).since_version)


def _all_nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(entry.g)


def info(name: str, dtype: int, axes: Sequence[Axis]) -> onnx.ValueInfoProto:
    """Declares an input or output of the step graph."""
    return helper.make_tensor_value_info(name, dtype or TensorProto.FLOAT, axis_words(axes))


def has_time(value: Value) -> bool:
    """Says whether there is an entry for each token."""
    return any(TIME in axis for axis in value.axes)


def has_batch(axes: Sequence[Axis]) -> bool:
    """Says whether there is an entry for each row."""
    return any(BATCH in axis for axis in axes)
