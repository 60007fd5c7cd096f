"""Tensors of the Open Inference Protocol as numpy arrays. Pure."""

import math
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest
from holdfast.oip.v2 import oip_pb2 as oip
from service.model.contract import DTYPES
from service.rpc.codec import MAX_AXES, MAX_TENSORS
from service.store.outputs import DTYPE_NUMBERS

DATATYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}
"""Name of a numpy dtype -> datatype."""

DATATYPE_OF_NUMBER = {DTYPE_NUMBERS[name]: datatype for name, datatype in DATATYPES.items()}
"""`holdfast.v1.DataType` -> datatype."""

BYTES = "BYTES"

_DTYPE_OF = {datatype: DTYPES[name] for name, datatype in DATATYPES.items()}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


class Given(NamedTuple):
    """An input of a request.

    Attributes:
        name: Of the input.
        datatype: As sent.
        shape: As sent.
        values: The elements; of BYTES, dtype object.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any]


def field_of(name: str) -> str:
    """Returns the path of an input, for errors."""
    return f"inputs[{name}]"


def read_inputs(request: oip.ModelInferRequest) -> dict[str, Given]:
    """Reads the inputs of a request, by name.

    Raises:
        InvalidRequest: An input is no tensor, comes twice, or comes both as raw and as typed contents.
    """
    inputs, raw = request.inputs, request.raw_input_contents
    if len(inputs) > MAX_TENSORS:
        raise InvalidRequest(
            f"the request has {len(inputs)} inputs, expected at most {MAX_TENSORS}", field="inputs"
        )
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs, expected one for each",
            field="raw_input_contents",
        )
    found: dict[str, Given] = {}
    for number, tensor in enumerate(inputs):
        if tensor.name in found:
            raise InvalidRequest(f"input {tensor.name!r} is given twice", field=field_of(tensor.name))
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise InvalidRequest(
                f"input {tensor.name!r} lies in shared memory, which this server does not read; send its "
                "contents",
                field=field_of(tensor.name),
            )
        found[tensor.name] = _read(tensor, raw[number] if raw else None)
    return found


def _read(tensor: Any, raw: bytes | None) -> Given:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if datatype not in _DTYPE_OF and datatype != BYTES:
        raise InvalidRequest(
            f"input {name!r} has datatype {datatype!r}, expected one of {', '.join([*_DTYPE_OF, BYTES])}",
            field=field_of(name),
        )
    if len(shape) > MAX_AXES or any(extent < 1 for extent in shape):
        raise InvalidRequest(
            f"input {name!r} has shape {list(shape)}, expected at most {MAX_AXES} extents, each 1 or more",
            field=field_of(name),
        )
    count = math.prod(shape)
    if raw is None:
        values = _typed(tensor)
    elif any(len(part) for _, part in tensor.contents.ListFields()):
        raise InvalidRequest(
            f"input {name!r} has typed contents, and the request has raw_input_contents: expected "
            "one of them",
            field=field_of(name),
        )
    elif datatype == BYTES:
        values = _split(name, raw)
    elif len(raw) != count * _DTYPE_OF[datatype].itemsize:
        raise InvalidRequest(
            f"input {name!r} has {len(raw)} bytes, {datatype} {list(shape)} needs "
            f"{count * _DTYPE_OF[datatype].itemsize}",
            field=field_of(name),
        )
    else:
        values = np.frombuffer(raw, _DTYPE_OF[datatype])
    if values.size != count:
        raise InvalidRequest(
            f"input {name!r} has {values.size} elements, shape {list(shape)} needs {count}",
            field=field_of(name),
        )
    return Given(name, datatype, shape, values.reshape(shape))


def _typed(tensor: Any) -> NDArray[Any]:
    """Returns typed contents, flat."""
    wanted = _CONTENTS.get(tensor.datatype)
    if wanted is None:
        raise InvalidRequest(
            f"input {tensor.name!r} has datatype {tensor.datatype}, which has no typed contents: send it "
            "in raw_input_contents",
            field=field_of(tensor.name),
        )
    for found, _ in tensor.contents.ListFields():
        if found.name != wanted:
            raise InvalidRequest(
                f"input {tensor.name!r} has datatype {tensor.datatype} and {found.name}, expected {wanted}",
                field=field_of(tensor.name),
            )
    values = getattr(tensor.contents, wanted)
    if tensor.datatype == BYTES:
        return np.array([*values, None], object)[:-1]
    try:
        return np.array(values, _DTYPE_OF[tensor.datatype])
    except OverflowError:
        raise InvalidRequest(
            f"input {tensor.name!r} has elements that {tensor.datatype} cannot hold",
            field=field_of(tensor.name),
        ) from None


def _split(name: str, raw: bytes) -> NDArray[Any]:
    """Returns the elements of BYTES, each of which follows its length."""
    elements: list[bytes | None] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            break
        [size] = struct.unpack_from("<I", raw, place)
        place += 4 + size
        if place <= len(raw):
            elements.append(raw[place - size : place])
    if place != len(raw):
        raise InvalidRequest(
            f"input {name!r} ends within an element: of BYTES, every element follows its length, "
            "four bytes",
            field=field_of(name),
        )
    return np.array([*elements, None], object)[:-1]  # an array of bytes alone would lose their zeros
