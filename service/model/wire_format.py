"""Fields of protobuf messages, read from the bytes of an ONNX file. Pure."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class UnsafeGraph(Exception):
    """A file must not be loaded; the message says what is in it."""


class Span(NamedTuple):
    """Where the payload of a field lies."""

    start: int
    end: int


Fields = list[tuple[int, int | Span]]
"""Number and value of the fields of a message that are known here: a varint, or a span."""

NUMBER, TEXT = "number", "text"
"""Kinds of fields that are no messages."""


def fields_of(
    data: bytes, span: Span, kind: str, known: Mapping[int, str]
) -> Iterator[tuple[int, int | Span]]:
    """Yields number and value of each known field of a message.

    Args:
        data: The file.
        span: Where the message lies.
        kind: What it is, for words.
        known: Number of a field -> what is in it: `NUMBER`, or something of bytes.

    Raises:
        UnsafeGraph: It is no message, or a known field has a wire type that no ONNX tool writes.
    """
    offset, end = span
    while offset < end:
        tag, offset = varint(data, offset, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise not_onnx(f"field {number} at byte {offset}")
        content = known.get(number)
        if content is not None and wire_type != (0 if content == NUMBER else 2):
            raise not_onnx(f"field {number} of a {kind} at byte {offset} is of wire type {wire_type}")
        if wire_type == 0:
            value, offset = varint(data, offset, end)
            if content is not None:
                yield number, value
            continue
        if wire_type == 2:
            size, offset = varint(data, offset, end)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise not_onnx(f"wire type {wire_type} at byte {offset}")
        if size > end - offset:
            raise not_onnx(f"cut off at byte {end}, or damaged")
        if content is not None:
            yield number, Span(offset, offset + size)
        offset += size


def varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Returns the number at an offset, and where it ends; raises UnsafeGraph if there is none."""
    value = shift = 0
    while offset < end and shift < 70:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
    raise not_onnx(f"no number at byte {offset}")


def not_onnx(why: str) -> UnsafeGraph:
    """Returns the error of a file that is no ONNX file."""
    return UnsafeGraph(f"not a loadable ONNX graph: {why}")
