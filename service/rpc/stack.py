"""Cuts the columns of a reply out of what its rows gave: bytes with one layout in all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.v1 import holdfast_pb2 as pb
from service.rpc import codec
from service.store.protocol import AckLevel

MAX_REPLY_BYTES = 16 << 20
"""Of a batch: what our client receives."""


class _Field(NamedTuple):
    """One field of a serialised message: its number, and where its payload lies."""

    number: int
    payload: int
    end: int


_TENSORS = pb.Outputs.TENSORS_FIELD_NUMBER
_NUMERIC = {
    pb.Outputs.TOP_IDS_FIELD_NUMBER,
    pb.Outputs.TOP_LOG_PROBS_FIELD_NUMBER,
    pb.Outputs.TOKEN_LOG_PROBS_FIELD_NUMBER,
}


class Piece(NamedTuple):
    """Rows that are applied.

    Attributes:
        numbers: Which rows of the message, int64 (R,).
        stamps: Incarnation, position and history digest of each, int64 (R, 3).
        model_version: Version that ran.
        outputs: What each gave, serialised, uint8 (R, n).
        ack_level: How durable they are.
        is_replayed: They had been applied before.
    """

    numbers: NDArray[np.int64]
    stamps: NDArray[np.int64]
    model_version: int
    outputs: NDArray[np.uint8]
    ack_level: AckLevel = AckLevel.MEMORY
    is_replayed: bool = False


class Stack(NamedTuple):
    """Outputs of all rows in one message.

    Attributes:
        outputs: Serialised Outputs, row-major; zero for rows that are not given or separate.
        model_version: Of the rows in it; 0 if there are none.
        separate: Rows laid out otherwise, or from another version of the model.
    """

    outputs: bytes
    model_version: int
    separate: list[pb.SeparateRow]


def stack_outputs(
    row_count: int,
    token_count: int,
    pieces: Sequence[Piece],
    room_bytes: int = MAX_REPLY_BYTES,
) -> Stack:
    """Joins the serialised Outputs of rows into one.

    Args:
        row_count: B; entries of rows that are not given are zero.
        token_count: Of all rows together.
        pieces: Rows that are applied. The layout is that of rows which ran now, if there are any.
        room_bytes: What the outputs may take. Where columns would take more, every row is separate: kept
            replies may be to requests for more than was asked now, and refusals take room of their own.
    """
    if not pieces:
        return Stack(pb.Outputs(token_count=token_count).SerializeToString(), 0, [])
    first = min(pieces, key=lambda piece: piece.is_replayed)
    template, version = first.outputs[0].tobytes(), first.model_version
    if row_count * len(template) > room_bytes:
        rows = sorted(row for piece in pieces for row in piece.numbers.tolist())
        separate = _separate_rows(rows, pieces, room_bytes)
        return Stack(pb.Outputs(token_count=token_count).SerializeToString(), 0, separate)
    head = pb.Outputs.FromString(template)
    columns = _columns_of(template, head)
    separate = []
    if len(pieces) == 1 and len(first.numbers) == row_count:
        matrix = first.outputs
    else:
        matrix, strangers = _align(row_count, template, version, columns, pieces)
        separate = _separate_rows(strangers, pieces, room_bytes - matrix.size)
    stacked = pb.Outputs(token_count=token_count, top_k=head.top_k)
    parts, tensors = [], iter(head.tensors)
    for field in columns:
        data = matrix[:, field.payload : field.end].tobytes()
        if field.number != _TENSORS:
            parts.append(codec.delimited(field.number, data))
            continue
        named = next(tensors)
        named.tensor.data = data
        named.tensor.shape[0] *= row_count  # of one row: its tokens, or 1
        stacked.tensors.append(named)
    return Stack(b"".join((stacked.SerializeToString(), *parts)), version, separate)


def _separate_rows(rows: Sequence[int], pieces: Sequence[Piece], room_bytes: int) -> list[pb.SeparateRow]:
    """Returns rows with their outputs, as far as there is room for these."""
    separate = []
    for row in rows:
        one = _separate(row, pieces)
        room_bytes -= one.ByteSize()
        if room_bytes < 0:
            one.ClearField("outputs")
        separate.append(one)
    return separate


def _separate(row: int, pieces: Sequence[Piece]) -> pb.SeparateRow:
    for piece in pieces:
        if len(places := np.flatnonzero(piece.numbers == row)):
            outputs = pb.Outputs.FromString(piece.outputs[places[0]].tobytes())
            outputs.ClearField("state")  # kept from a Step; a batch gives none
            return pb.SeparateRow(row=row, model_version=piece.model_version, outputs=outputs)
    raise AssertionError("bug: a row that was not answered is laid out otherwise")


def _columns_of(template: bytes, head: pb.Outputs) -> list[_Field]:
    """Returns the fields that hold numbers, payloads narrowed to the numbers themselves."""
    columns, tensors = [], iter(head.tensors)
    for field in _fields(template):
        if field.number in _NUMERIC:
            columns.append(field)
        elif field.number == _TENSORS:  # its data come last in the tensor, and the tensor in the field
            columns.append(field._replace(payload=field.end - len(next(tensors).tensor.data)))
    return columns


def _align(
    row_count: int,
    template: bytes,
    version: int,
    columns: Sequence[_Field],
    pieces: Sequence[Piece],
) -> tuple[NDArray[np.uint8], list[int]]:
    """Returns rows as bytes (B, n), zero where missing or unlike the template; and the latter."""
    size = len(template)
    matrix = np.zeros((row_count, size), np.uint8)
    is_given = np.zeros(row_count, np.bool_)
    for piece in pieces:
        is_given[piece.numbers] = True
        if piece.outputs.shape[1] == size and piece.model_version == version:
            matrix[piece.numbers] = piece.outputs
    is_frame = np.ones(size, np.bool_)
    for field in columns:
        is_frame[field.payload : field.end] = False
    frame = np.frombuffer(template, np.uint8)[is_frame]
    strangers = np.flatnonzero(is_given & (matrix[:, is_frame] != frame).any(axis=1))
    matrix[strangers] = 0
    return matrix, strangers.tolist()


def _fields(message: bytes) -> list[_Field]:
    """Walks the top level of a serialised Outputs, which has varints and delimited fields only."""
    fields = []
    offset = 0
    while offset < len(message):
        tag, offset = _read_varint(message, offset)
        value, offset = _read_varint(message, offset)
        payload = offset
        if tag & 7 == 2:
            offset += value
        fields.append(_Field(tag >> 3, payload, offset))
    return fields


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
