"""Looks a whole-sequence file over before anything is read into it: is it whole, sorted, one file?"""

from collections.abc import Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.inliner import inline_local_functions

from model_export.surgery.value import Refused

MAX_BYTES = 1 << 31
_MAX_CHARS = 200


def parsed(data: bytes) -> onnx.ModelProto:
    """Reads a file's bytes.

    Raises:
        Refused: They are no ONNX graph, or cut off.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise Refused("it is not an ONNX file, or is truncated; export it again, in one piece") from None
    return model


def prepared(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Returns a copy in which functions are written out and the given inputs are constants.

    Raises:
        Refused: The file is not whole or not consistent.
    """
    if not model.HasField("graph") or not model.graph.node:
        raise Refused("it has no graph; it is not an ONNX model, or is truncated")
    _check_in_one_file(model.graph)
    _check_order(model.graph, set())
    versions = {entry.domain for entry in model.opset_import}
    if not versions & {"", "ai.onnx"}:
        raise Refused("it does not say which version of ONNX's operators it has (opset_import)")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inline_local_functions(copy)
    _give(copy.graph, constants)
    return copy


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of ONNX's operators."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _check_in_one_file(graph: onnx.GraphProto) -> None:
    weights = [*graph.initializer, *(entry.t for node in graph.node for entry in node.attribute)]
    for weight in weights:
        if weight.data_location == TensorProto.EXTERNAL:
            raise Refused(
                f"weight {weight.name!r} is in a second file (external data); put that file beside "
                "it, and load both "
                "with onnx.load"
            )


def _check_order(graph: onnx.GraphProto, around: set[str]) -> None:
    """Each tensor is made once, and before it is read."""
    made = {info.name for info in graph.input} | {weight.name for weight in graph.initializer}
    makers = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        for name in node.input:
            if name and name not in made | around:
                why = (
                    "is read before it is made: the graph is cyclic, or not sorted"
                    if name in makers
                    else ("is made by nothing: the graph is cut off")
                )
                raise Refused(f"tensor {name!r}, which {node.op_type} reads, {why}; export it again")
        for name in filter(None, node.output):
            if name in made:
                raise Refused(f"two things are called {name!r}; names of tensors must differ")
            made.add(name)
        for entry in node.attribute:
            if entry.type == AttributeProto.GRAPH:
                _check_order(entry.g, made | around)
    for info in graph.output:
        if info.name not in made | around:
            raise Refused(f"output {info.name!r} is made by nothing: the graph is cut off; export it again")
    names = [info.name for info in graph.input]
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"two inputs are called {name!r}; names of tensors must differ")


def _give(graph: onnx.GraphProto, constants: Mapping[str, NDArray[Any]]) -> None:
    held = {weight.name for weight in graph.initializer}
    known = {info.name: info for info in graph.input}
    for name, array in constants.items():
        if name not in known:
            raise Refused(f"constant {name!r} is none of the inputs: {', '.join(sorted(known))}")
        _check_given(known[name], array)
        if name in held:
            kept = [weight for weight in graph.initializer if weight.name != name]
            del graph.initializer[:]
            graph.initializer.extend(kept)
        graph.initializer.append(numpy_helper.from_array(array, name))
    held |= set(constants)
    free = [info for info in graph.input if info.name not in held]
    del graph.input[:]
    graph.input.extend(free)


def _check_given(info: onnx.ValueInfoProto, array: NDArray[Any]) -> None:
    wanted = info.type.tensor_type.elem_type
    if wanted and wanted != onnx.helper.np_dtype_to_tensor_dtype(array.dtype):
        shown = onnx.helper.tensor_dtype_to_np_dtype(wanted)
        raise Refused(f"constant {info.name!r} is {array.dtype}, the graph takes {shown}")
    dims = info.type.tensor_type.shape.dim
    if info.type.tensor_type.HasField("shape") and len(dims) != array.ndim:
        raise Refused(f"constant {info.name!r} has {array.ndim} axes, the graph takes {len(dims)}")


def one_line(error: Exception) -> str:
    """Returns an exception's text in one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= _MAX_CHARS else words[:_MAX_CHARS] + "..."
