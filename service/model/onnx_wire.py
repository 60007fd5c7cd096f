"""Looks into an ONNX file for what a server must not load: other files, foreign code, settings. Pure.

An ONNX file is a protobuf message. The server does not depend on the package `onnx`, and onnxruntime says
what a graph refers to only by loading it, so this reads the wire format itself: nodes, tensors and graphs
wherever they may lie (in functions and in the attributes of nodes too), and skips all else. It refuses

- tensors whose data lie elsewhere: in a file, or at an address in memory;
- operators that are not listed (`service.model.operators`) and are no function of the file either, in every
  node, whether anything calls it or not;
- functions of the file that bear the name of what onnxruntime has itself, and those that call themselves;
- settings of onnxruntime in the metadata, and training graphs;
- weights that are not finite;
- sequences of tensors that are not told by constants (`service.model.sequences`);
- bytes that are not such a message: cut off, or with wire types that no ONNX tool writes.

Where a parser takes the last of several values of a field, each of them is looked at, or the file refused;
where one skips a field for its wire type, the file is refused. So both agree on what is there.
"""

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TypeVar

from service.model.operators import (
    ATTRIBUTE_RANGES,
    ONNX_DOMAIN,
    OPSETS,
    Operator,
    is_listed,
    is_reserved,
    same_domain,
)
from service.model.other_formats import other_format
from service.model.sequences import Node, Numbers, Wiring
from service.model.weights import are_finite
from service.model.wire_format import NUMBER, TEXT, Fields, Span, UnsafeGraph, fields_of, not_onnx, varint

MAX_DEPTH = 100
"""Messages in messages; protobuf's own limit."""

_MAIN_DEPTH = 3
"""Of what the main graph has: it lies in a graph in a model."""


_Value = TypeVar("_Value", int, Span)

_TENSOR = {2: NUMBER, 4: TEXT, 8: TEXT, 9: TEXT, 10: TEXT, 13: "entry", 14: NUMBER}

# Kind of message, number of a field -> what is in it; other fields are skipped.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "initializer", 11: "input", 12: "output", 15: "sparse tensor"},
    "function": {1: TEXT, 7: "node", 9: "opset", 10: TEXT, 11: "attribute", 13: TEXT},
    "node": {1: TEXT, 2: TEXT, 4: TEXT, 5: "attribute", 7: TEXT, 8: TEXT},
    "attribute": {
        1: TEXT,
        3: NUMBER,
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        20: NUMBER,
        21: TEXT,
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "initializer", 2: "tensor"},
    "initializer": _TENSOR,
    "tensor": _TENSOR,
    "constant": {1: NUMBER, 2: NUMBER, 3: TEXT, 7: TEXT, 9: TEXT},  # a tensor again, for its numbers
    "input": {1: TEXT},
    "output": {1: TEXT},
    "opset": {1: TEXT, 2: NUMBER},
    "entry": {1: TEXT},
    "training": {},
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_ELEMENT_TYPE, _TENSOR_DATA = 2, (4, 9, 10)
"""Floats lie in one of three fields."""
_NODE_IDENTITY, _FUNCTION_IDENTITY = (7, 4, 8), (10, 1, 13)
"""Fields of domain, name and overload."""
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_NUMBER, _ATTRIBUTE_TENSOR, _ATTRIBUTE_TYPE, _ATTRIBUTE_REFERENCE = (
    1,
    3,
    5,
    20,
    21,
)
_IS_TENSOR = 4
"""Type of an attribute."""
_EXTENT, _SEGMENT, _NUMBERS, _RAW = 1, 3, 7, 9
"""Fields of a tensor that is read for its numbers."""
_INT64 = 7
_VALUE_NAME = 1
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY = 1


class _Found:
    """What a file has, gathered until all of it is known.

    Attributes:
        used: Operators that nodes name, and how often.
        calls: Function of the file -> operators in its nodes and their graphs.
        has_version: It says which version of ONNX's operators it uses; onnxruntime takes the first without.
        wiring: Names of its values.
        constants: Initializers and Constant nodes of the main graph -> where their tensor lies.
    """

    def __init__(self) -> None:
        self.used: Counter[Operator] = Counter()
        self.calls: dict[Operator, set[Operator]] = {}
        self.has_version = False
        self.wiring = Wiring()
        self.constants: dict[bytes, Span] = {}


def check_file(data: bytes) -> Mapping[Operator, int]:
    """Looks through a whole file.

    Args:
        data: The file.

    Returns:
        How many nodes name each operator.

    Raises:
        UnsafeGraph: It is not an ONNX file, or holds what is refused.
    """
    if not data:
        raise not_onnx("the file is empty")
    if (format_in_words := other_format(data)) is not None:
        raise not_onnx(f"it is {format_in_words}")
    found = _Found()
    waiting: list[tuple[str, Span, int, Operator | None]] = [("model", Span(0, len(data)), 1, None)]
    while waiting:
        kind, span, depth, function = waiting.pop()
        if depth > MAX_DEPTH:
            raise UnsafeGraph(f"messages lie in messages more than {MAX_DEPTH} deep")
        fields = list(fields_of(data, span, kind, _FIELDS[kind]))
        if kind == "training":
            raise UnsafeGraph("it has a training graph; export the network for inference")
        is_in_main_graph = depth == _MAIN_DEPTH and function is None
        if kind in ("tensor", "initializer"):
            _check_tensor(data, fields)
            if kind == "initializer":
                name = _text(data, fields, _TENSOR_NAME)
                found.wiring.defined[name] += 1
                if is_in_main_graph:
                    found.constants[name] = span
        elif kind == "entry":
            _check_entry(data, fields)
        elif kind == "opset":
            is_onnx = _check_opset(data, fields)
            found.has_version |= is_onnx and function is None
        elif kind == "attribute":
            _check_attribute(data, fields)
        elif kind == "function":
            function = _add_function(found, _operator(data, fields, _FUNCTION_IDENTITY))
        elif kind == "input":
            found.wiring.defined[_text(data, fields, _VALUE_NAME)] += 1
        elif kind == "output":
            found.wiring.results.add(_text(data, fields, _VALUE_NAME))
        elif kind == "node":
            operator = _operator(data, fields, _NODE_IDENTITY)
            found.used[operator] += 1
            _add_node(data, fields, operator, found, is_in_main_graph)
            if function is not None:
                found.calls[function].add(operator)
        for number, value in fields:
            if isinstance(value, Span) and (inner := _FIELDS[kind][number]) != TEXT:
                waiting.append((inner, value, depth + 1, function))
    if not found.has_version:
        raise not_onnx("it does not say which version of ONNX's operators it uses")
    for operator in sorted(found.used.keys() - found.calls.keys()):
        _check_operator(operator)
    _check_calls(found.calls)
    _check_sequences(data, found)
    return found.used


def _check_tensor(data: bytes, fields: Fields) -> None:
    for number, value in fields:
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            name = _shown(_text(data, fields, _TENSOR_NAME))
            raise UnsafeGraph(f"tensor {name} has its data outside (external data); save it as one file")
    element_types = _values(fields, _ELEMENT_TYPE, int)
    for number, value in fields:
        if number in _TENSOR_DATA and isinstance(value, Span):
            numbers = data[slice(*value)]
            if not all(are_finite(element_type, numbers) for element_type in element_types):
                name = _shown(_text(data, fields, _TENSOR_NAME))
                raise UnsafeGraph(
                    f"tensor {name} holds NaN or infinity, as a training that has diverged leaves them; "
                    "export weights that are finite"
                )


def _check_entry(data: bytes, fields: Fields) -> None:
    if any(data[slice(*value)] == b"ort_config" for value in _values(fields, _ENTRY_KEY, Span)):
        raise UnsafeGraph("its metadata has settings of onnxruntime (ort_config); remove them")


def _check_opset(data: bytes, fields: Fields) -> bool:
    """Returns whether it is the version of ONNX's operators."""
    versions = _values(fields, _OPSET_VERSION, int)
    if len(versions) > 1:
        raise _twice("a version of operators")
    version = versions[0] if versions else 0
    is_onnx = same_domain(_text(data, fields, _OPSET_DOMAIN)) == ONNX_DOMAIN
    if is_onnx and version not in OPSETS:
        raise UnsafeGraph(
            f"it uses version {version} of ONNX's operators, expected one of {OPSETS[0]}..{OPSETS[-1]}"
        )
    return is_onnx


def _check_attribute(data: bytes, fields: Fields) -> None:
    name = _text(data, fields, _ATTRIBUTE_NAME)
    bounds = ATTRIBUTE_RANGES.get(name)
    if bounds is None:
        return
    least, most = bounds
    if _values(fields, _ATTRIBUTE_REFERENCE, Span):
        raise UnsafeGraph(f"attribute {_shown(name)} is a parameter of a function; write its value there")
    given = _values(fields, _ATTRIBUTE_NUMBER, int) or [0]
    if any(not least <= value <= most for value in given):
        raise UnsafeGraph(f"attribute {_shown(name)} is not in {least}..{most}")


def _add_function(found: _Found, function: Operator) -> Operator:
    if is_reserved(function.domain):
        raise UnsafeGraph(
            f"it defines a function {_shown(function.name)} in the domain {_shown(function.domain)}, where "
            "onnxruntime may run a kernel of its own instead; give the function a domain of yours"
        )
    if function in found.calls:
        raise UnsafeGraph(f"it defines the function {_shown(function.name)} twice")
    found.calls[function] = set()
    return function


def _check_operator(operator: Operator) -> None:
    if operator.overload and is_reserved(operator.domain):
        raise UnsafeGraph(
            f"operator {_shown(operator.name)} is ONNX's or onnxruntime's, and has an overload"
        )
    if not is_listed(operator):
        where = f"operator {_shown(operator.name)} of domain {_shown(operator.domain)}"
        raise UnsafeGraph(
            f"{where} is not allowed; expected those of ai.onnx that recurrent graphs have, and the "
            "quantised ones of com.microsoft"
        )


def _check_calls(calls: dict[Operator, set[Operator]]) -> None:
    """Refuses functions that call themselves, if by way of others: what calls only what is done is done."""
    left = {function: len(called & calls.keys()) for function, called in calls.items()}
    callers: dict[Operator, list[Operator]] = {function: [] for function in calls}
    for function, called in calls.items():
        for other in called & calls.keys():
            callers[other].append(function)
    done = [function for function, count in left.items() if not count]
    for function in done:  # it grows meanwhile
        for caller in callers[function]:
            left[caller] -= 1
            if not left[caller]:
                done.append(caller)
    if len(done) < len(calls):
        name = min(calls.keys() - set(done)).name
        raise UnsafeGraph(f"its function {_shown(name)} calls itself, or another one that does")


def _add_node(
    data: bytes, fields: Fields, operator: Operator, found: _Found, is_in_main_graph: bool
) -> None:
    inputs, outputs = (
        tuple(data[slice(*name)] for name in _values(fields, number, Span))
        for number in (_NODE_INPUT, _NODE_OUTPUT)
    )
    found.wiring.nodes.append(Node(operator, inputs, outputs, is_in_main_graph))
    found.wiring.defined.update(outputs)
    attributes = _values(fields, _NODE_ATTRIBUTE, Span)
    is_constant = is_in_main_graph and operator == Operator(ONNX_DOMAIN, b"Constant")
    if is_constant and len(attributes) == len(outputs) == 1:
        value = list(fields_of(data, attributes[0], "attribute", _FIELDS["attribute"]))
        tensors = _values(value, _ATTRIBUTE_TENSOR, Span)
        is_tensor = _values(value, _ATTRIBUTE_TYPE, int) == [_IS_TENSOR]
        is_value = is_tensor and _text(data, value, _ATTRIBUTE_NAME) == b"value"
        if is_value and len(tensors) == 1 and not _values(value, _ATTRIBUTE_REFERENCE, Span):
            found.constants[outputs[0]] = tensors[0]


def _check_sequences(data: bytes, found: _Found) -> None:
    found.wiring.has_functions = bool(found.calls)
    told = found.wiring.told() & found.constants.keys()
    numbers = {name: _numbers(data, found.constants[name]) for name in told}
    refusal = found.wiring.refusal({name: given for name, given in numbers.items() if given is not None})
    if refusal is not None:
        raise UnsafeGraph(refusal)


def _numbers(data: bytes, tensor: Span) -> Numbers | None:
    """Returns the numbers of a tensor, or None where its type is another, or its data not of one kind."""
    fields = list(fields_of(data, tensor, "constant", _FIELDS["constant"]))
    extents = _values(fields, _EXTENT, int)
    lists = [(number, value) for number, value in fields if number in (_SEGMENT, _NUMBERS, _RAW)]
    if _values(fields, _ELEMENT_TYPE, int) != [_INT64] or len(lists) != 1:
        return None
    [(kind, (offset, end))] = lists  # type: ignore[misc]
    values: list[int] = []
    while offset < end:
        if kind == _RAW:
            value, offset = int.from_bytes(data[offset : min(offset + 8, end)], "little"), offset + 8
        else:
            value, offset = varint(data, offset, end)
        values.append((value + (1 << 63)) % (1 << 64) - (1 << 63))
    is_whole = offset == end and len(values) == prod(extents)
    return Numbers(len(extents), tuple(values)) if is_whole and kind != _SEGMENT else None


def _operator(data: bytes, fields: Fields, identity: tuple[int, int, int]) -> Operator:
    domain, name, overload = (_text(data, fields, number) for number in identity)
    for text in (domain, name, overload):
        if any(byte <= 0x20 or byte == 0x7F for byte in text):
            raise UnsafeGraph(
                f"the name of an operator, {_shown(text)}, has a space or a control character"
            )
    return Operator(same_domain(domain), name, overload)


def _text(data: bytes, fields: Fields, wanted: int) -> bytes:
    spans = _values(fields, wanted, Span)
    if len(spans) > 1:
        raise _twice("a name")
    return data[slice(*spans[0])] if spans else b""


def _values(fields: Fields, wanted: int, kind: type[_Value]) -> list[_Value]:
    return [value for number, value in fields if number == wanted and isinstance(value, kind)]


def _twice(what: str) -> UnsafeGraph:
    return UnsafeGraph(f"{what} is there twice, which no ONNX tool writes")


def _shown(raw: bytes) -> str:
    text = raw[:64].decode(errors="replace")
    return ascii(text) + ("..." if len(raw) > 64 else "")
