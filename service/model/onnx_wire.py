"""Looks into an ONNX file for what a server must not load: other files, foreign code, settings. Pure.

An ONNX file is a protobuf message. The server does not depend on the package `onnx`, and onnxruntime says
what a graph refers to only by loading it, so this reads the wire format itself: nodes, tensors and graphs
wherever they may lie (in functions and in the attributes of nodes too), and skips all else. It refuses

- tensors whose data lie elsewhere: in a file, or at an address in memory;
- operators that are neither ONNX's own, nor of the few that onnxruntime's quantiser and optimiser write,
  nor functions of the file itself;
- settings of onnxruntime in the metadata, and training graphs;
- bytes that are not such a message: cut off, or with wire types that no ONNX tool writes.

Where a parser takes the last of several values of a field, each of them is looked at, so that both agree.
"""

from collections.abc import Iterator

MAX_DEPTH = 100
"""Messages in messages; protobuf's own limit."""

ONNX_DOMAINS = (b"", b"ai.onnx")

MICROSOFT_DOMAIN = b"com.microsoft"
MICROSOFT_OPS = frozenset(
    {
        b"BiasGelu",
        b"DequantizeLinear",
        b"DynamicQuantizeLSTM",
        b"DynamicQuantizeMatMul",
        b"FastGelu",
        b"FusedGemm",
        b"FusedMatMul",
        b"Gelu",
        b"MatMulIntegerToFloat",
        b"MatMulNBits",
        b"QGemm",
        b"QLinearAdd",
        b"QLinearConcat",
        b"QLinearMul",
        b"QLinearSigmoid",
        b"QuantizeLinear",
        b"QuickGelu",
        b"SkipLayerNormalization",
    }
)
"""Of onnxruntime's own operators those that quantised and fused recurrent graphs have. The other hundred
include some that load further files or run other code, and none that a step graph needs."""


class UnsafeGraph(Exception):
    """A file must not be loaded; the message says what is in it."""


Span = tuple[int, int]
"""Start and end of the payload of a field."""

# Kind of message, number of a field -> kind of message in it. Tensors and names are looked at by hand.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "entry": {},
}
_TRAINING_INFO = 20
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_NODE_OP, _NODE_DOMAIN = 4, 7
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_ENTRY_KEY = 1

Operator = tuple[bytes, bytes]
"""Domain and name."""


def check_file(data: bytes) -> None:
    """Looks through a whole file.

    Args:
        data: The file.

    Raises:
        UnsafeGraph: It is not an ONNX file, or holds what is refused.
    """
    used: set[Operator] = set()
    defined: set[Operator] = set()
    waiting: list[tuple[str, Span, int]] = [("model", (0, len(data)), 1)]
    while waiting:
        kind, span, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UnsafeGraph(f"messages lie in messages more than {MAX_DEPTH} deep")
        fields = list(_fields(data, *span))
        if kind == "model" and any(number == _TRAINING_INFO for number, _ in fields):
            raise UnsafeGraph("it has a training graph; export the network for inference")
        if kind == "tensor":
            _check_tensor(data, fields)
        elif kind == "entry":
            _check_entry(data, fields)
        elif kind == "node":
            used.add(_operator(data, fields, _NODE_DOMAIN, _NODE_OP))
        elif kind == "function":
            defined.add(_operator(data, fields, _FUNCTION_DOMAIN, _FUNCTION_NAME))
        children = _CHILDREN[kind]
        for number, value in fields:
            if number in children and not isinstance(value, int):
                waiting.append((children[number], value, depth + 1))
    for domain, name in sorted(used - defined):
        _check_operator(domain, name)


def _check_tensor(data: bytes, fields: list[tuple[int, int | Span]]) -> None:
    for number, value in fields:
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            name = _shown(_text(data, fields, _TENSOR_NAME))
            raise UnsafeGraph(f"tensor {name} has its data outside (external data); save it as one file")


def _check_entry(data: bytes, fields: list[tuple[int, int | Span]]) -> None:
    if any(data[slice(*value)] == b"ort_config" for value in _spans(fields, _ENTRY_KEY)):
        raise UnsafeGraph("its metadata has settings of onnxruntime (ort_config); remove them")


def _check_operator(domain: bytes, name: bytes) -> None:
    if domain in ONNX_DOMAINS or (domain == MICROSOFT_DOMAIN and name in MICROSOFT_OPS):
        return
    raise UnsafeGraph(
        f"operator {_shown(name)} of domain {_shown(domain)} is not allowed; expected are those of ai.onnx "
        "and the quantised ones of com.microsoft"
    )


def _operator(data: bytes, fields: list[tuple[int, int | Span]], domain: int, name: int) -> Operator:
    return _text(data, fields, domain), _text(data, fields, name)


def _text(data: bytes, fields: list[tuple[int, int | Span]], wanted: int) -> bytes:
    spans = _spans(fields, wanted)
    if len(spans) > 1:
        raise UnsafeGraph("a name is there twice, which no ONNX tool writes")
    return data[slice(*spans[0])] if spans else b""


def _spans(fields: list[tuple[int, int | Span]], wanted: int) -> list[Span]:
    return [value for number, value in fields if number == wanted and not isinstance(value, int)]


def _shown(raw: bytes) -> str:
    text = raw[:64].decode(errors="replace")
    return ascii(text) + ("..." if len(raw) > 64 else "")


# -- the wire format ------------------------------------------------------------------------------


def _fields(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int | Span]]:
    """Yields number and value of each field of a message: a varint as int, all else as its span."""
    while offset < end:
        tag, offset = _varint(data, offset, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _not_onnx(f"field {number} at byte {offset}")
        if wire_type == 0:
            value, offset = _varint(data, offset, end)
            yield number, value
            continue
        if wire_type == 2:
            size, offset = _varint(data, offset, end)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise _not_onnx(f"wire type {wire_type} at byte {offset}")
        if size > end - offset:
            raise _not_onnx(f"cut off at byte {end}, or damaged")
        yield number, (offset, offset + size)
        offset += size


def _varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while offset < end and shift < 70:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
    raise _not_onnx(f"no number at byte {offset}")


def _not_onnx(why: str) -> UnsafeGraph:
    return UnsafeGraph(f"not a loadable ONNX graph: {why}")
