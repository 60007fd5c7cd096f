"""The outputs of a chunk as a record keeps them: the bytes of `holdfast.v1.Outputs`. Pure.

They are encoded once, stored with the session, and sent, now and in every replay.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.v1 import holdfast_pb2 as pb

# Tags: number of the field times 8, plus 0 for a varint or 2 for bytes that follow their length.
_TOKEN_COUNT_TAG = b"\x08"
_TOP_K_TAG = b"\x10"
_TOP_IDS_TAG = b"\x1a"
_TOP_LOG_PROBS_TAG = b"\x22"
_TOKEN_LOG_PROBS_TAG = b"\x2a"
_TENSORS_TAG = b"\x32"
_STATE_TAG = b"\x3a"
_SAMPLED_IDS_TAG = b"\x42"
_SAMPLED_LOG_PROBS_TAG = b"\x4a"
_TENSOR_TAG = b"\x12"  # of NamedTensor
_DATA_TAG = b"\x1a"  # of Tensor

DTYPE_NUMBERS: dict[str, Any] = {
    name.removeprefix("DATA_TYPE_").lower(): number for name, number in pb.DataType.items()
}
"""Name of a numpy dtype -> its `DataType`."""
_ONE_BYTE = [bytes([value]) for value in range(128)]


class Outputs(NamedTuple):
    """What R chunks of k tokens gave, all with the same selection.

    Attributes:
        row_count: R.
        token_count: k.
        top_ids: int32 (R * k, top_k), best first; None if not asked for.
        top_log_probs: float32 (R * k, top_k).
        token_log_probs: float32 (R * k,); None if not asked for.
        tensors: Output name -> (R * k, ...); (R, ...) of outputs that are given once a chunk, as are the
            candidates by one of these.
        state: State name -> (R, ...).
        sampled_ids: The token drawn to follow each chunk, int32 (R,); None if none was. Then the candidates
            are those in its place, (R, top_k).
        sampled_log_probs: float32 (R,).
    """

    row_count: int
    token_count: int
    top_ids: NDArray[np.int32] | None
    top_log_probs: NDArray[np.float32] | None
    token_log_probs: NDArray[np.float32] | None
    tensors: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]
    sampled_ids: NDArray[np.int32] | None = None
    sampled_log_probs: NDArray[np.float32] | None = None


def encode_outputs(outputs: Outputs) -> NDArray[np.uint8]:
    """Returns the serialised `Outputs` of each row, (R, n).

    Numbers are fixed-width on the wire, so an array's bytes are their encoding, and rows of the same shape
    differ in these bytes only: what frames them is written once.
    """
    rows, count = outputs.row_count, outputs.token_count
    parts = [_head(_TOKEN_COUNT_TAG, count)]
    columns = []
    if outputs.top_ids is not None and outputs.top_log_probs is not None:
        parts.append(_head(_TOP_K_TAG, outputs.top_ids.shape[1]))
        columns += [(_TOP_IDS_TAG, outputs.top_ids), (_TOP_LOG_PROBS_TAG, outputs.top_log_probs)]
    if outputs.token_log_probs is not None:
        columns.append((_TOKEN_LOG_PROBS_TAG, outputs.token_log_probs))
    if outputs.sampled_ids is not None and outputs.sampled_log_probs is not None:
        columns += [(_SAMPLED_IDS_TAG, outputs.sampled_ids)]
        columns += [(_SAMPLED_LOG_PROBS_TAG, outputs.sampled_log_probs)]
    for tag, values in columns:
        data = np.ascontiguousarray(values).reshape(rows, -1).view(np.uint8)
        parts += (_head(tag, data.shape[1]), data)
    for name, array in outputs.tensors.items():
        parts += _named_column(_TENSORS_TAG, name, array, (len(array) // rows, *array.shape[1:]), rows)
    for name, array in outputs.state.items():
        parts += _named_column(_STATE_TAG, name, array, array.shape[1:], rows)
    if rows == 1:  # the idle server: one copy is faster than one for each part
        return np.frombuffer(b"".join([part.data for part in parts]), np.uint8)[np.newaxis]
    matrix = np.empty((rows, sum([part.shape[-1] for part in parts])), np.uint8)
    end = 0
    for part in parts:
        start, end = end, end + part.shape[-1]
        matrix[:, start:end] = part
    return matrix


@functools.lru_cache(1024)
def _head(tag: bytes, value: int) -> NDArray[np.uint8]:
    """Returns what is the same in every row: a tag, and a number or the length of the data that follow."""
    return np.frombuffer(tag + varint(value), np.uint8)


def _named_column(
    tag: bytes, name: str, values: NDArray[Any], shape: tuple[int, ...], rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns what comes before the data of a NamedTensor, its last bytes, and the data of each row."""
    data = np.ascontiguousarray(values).reshape(rows, -1).view(np.uint8)
    return _named_head(tag, name, values.dtype.name, shape, data.shape[1]), data


@functools.lru_cache(1024)
def _named_head(
    tag: bytes, name: str, dtype: str, shape: tuple[int, ...], data_bytes: int
) -> NDArray[np.uint8]:
    """Returns what comes before the data of a NamedTensor, its last bytes."""
    empty = pb.Tensor(dtype=DTYPE_NUMBERS[dtype], shape=shape).SerializeToString()
    head = empty + _DATA_TAG + varint(data_bytes)
    named = pb.NamedTensor(name=name).SerializeToString()
    named += _TENSOR_TAG + varint(len(head) + data_bytes) + head
    return np.frombuffer(tag + varint(len(named) + data_bytes) + named, np.uint8)


def varint(value: int) -> bytes:
    """Returns a number as protobuf writes it."""
    if value < 128:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
