"""Requests of the Open Inference Protocol as tokens, over contracts that no shipped model has."""

import numpy as np
import pytest

from holdfast.errors import InvalidRequest
from holdfast.oip.v2 import oip_pb2 as oip
from service.model.contract import ONE_TOKEN, Contract, GraphInput, InputSpec, OutputSpec, StateSpec
from service.rpc.oip.descriptions import config_message
from service.rpc.oip.mapping import read_session_inputs, read_tokens
from service.rpc.oip.tensors import read_inputs
from tests.support.fakes import AccumulatorModel

F16, F32, I64 = np.dtype("<f2"), np.dtype("<f4"), np.dtype("<i8")
CONTRACT = Contract(
    input=InputSpec("kind, readings", "features", F32, 3),
    states=(
        StateSpec("h", "h", "h_next", F32, (2,), 0),
        StateSpec("speaker", "speaker_in", "", F32, (4,), 0, kind="session_input", is_required=True),
    ),
    outputs=(OutputSpec("y", F16, (2,), "raw"),),
    graph_inputs=(
        GraphInput("readings", F16, (2,), ONE_TOKEN, (1, 3)),
        GraphInput("kind", I64, (), ONE_TOKEN, (0, 1), id_count=5),
    ),
)


def request(**arrays):
    message = oip.ModelInferRequest(model_name="m")
    names = {"float16": "FP16", "float32": "FP32", "int64": "INT64", "float64": "FP64"}
    for name, array in arrays.items():
        message.inputs.add(name=name, datatype=names[array.dtype.name], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def tokens(max_tokens=8, **arrays):
    return read_tokens(read_inputs(request(**arrays)), CONTRACT, max_tokens)


def field_at_fault(call, *arguments, **options):
    with pytest.raises(InvalidRequest) as found:
        call(*arguments, **options)
    return found.value.field


READINGS, KINDS = np.array([[1, 2], [3, 4]], F16), np.array([4, 0], I64)


@pytest.mark.parametrize("leading", [(2,), (1, 2), (2, 1)])
def test_the_columns_of_several_inputs_are_joined_in_the_order_of_the_contract(leading):
    found = tokens(readings=READINGS.reshape(*leading, 2), kind=KINDS.reshape(leading))
    assert (found.kind, found.token_count, found.width, found.leading) == ("features", 2, 3, leading)
    joined = np.frombuffer(found.data, "<f4").reshape(2, 3)
    assert np.array_equal(joined, [[4, 1, 2], [0, 3, 4]])


def test_float32_is_taken_for_any_input_and_other_datatypes_are_not():
    found = tokens(readings=READINGS.astype(F32), kind=KINDS.astype(F32))
    assert np.array_equal(np.frombuffer(found.data, "<f4"), [4, 1, 2, 0, 3, 4])
    assert field_at_fault(tokens, readings=READINGS.astype("<f8"), kind=KINDS) == "inputs[readings]"


def test_inputs_have_to_agree_and_to_be_of_one_sequence():
    assert field_at_fault(tokens, readings=READINGS, kind=KINDS[:1]) == "inputs"
    assert field_at_fault(tokens, readings=READINGS) == "inputs[kind]"
    two_rows = np.zeros((2, 2, 2), F16)
    assert field_at_fault(tokens, readings=two_rows, kind=KINDS) == "inputs[readings]"
    assert field_at_fault(tokens, readings=READINGS[:, :1], kind=KINDS) == "inputs[readings]"
    assert field_at_fault(tokens, max_tokens=1, readings=READINGS, kind=KINDS) == "inputs[readings]"


def of_session(*, is_start, **arrays):
    given = read_inputs(request(readings=READINGS, kind=KINDS, **arrays))
    return read_session_inputs(given, CONTRACT, is_start=is_start)


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_an_input_of_the_session_comes_with_the_start_and_only_then(shape):
    speaker = np.arange(4, dtype=F32).reshape(shape)
    assert np.array_equal(of_session(is_start=True, speaker_in=speaker)["speaker"], np.arange(4))
    assert of_session(is_start=False) == {}
    assert field_at_fault(of_session, is_start=False, speaker_in=speaker) == "inputs[speaker_in]"
    assert field_at_fault(of_session, is_start=True) == "inputs[speaker_in]"
    wrong = np.zeros(3, F32)
    assert field_at_fault(of_session, is_start=True, speaker_in=wrong) == "inputs[speaker_in]"


class _Described(AccumulatorModel):
    contract = CONTRACT


def test_a_graph_without_an_axis_of_time_is_described_as_it_is_called_for_one_token():
    config = config_message(_Described(), ttl_s=1.5)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("readings", oip.TYPE_FP16, [2]),
        ("kind", oip.TYPE_INT64, [1]),
        ("speaker_in", oip.TYPE_FP32, [4]),
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("y", oip.TYPE_FP16, [2])
    ]
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_500_000


def test_bytes_keep_their_zeros_and_end_where_their_length_says():
    message = oip.ModelInferRequest()
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(b"\3\0\0\0a\0\0")
    assert read_inputs(message)["text"].values.tolist() == [b"a\0\0"]
    for cut in (b"\3\0\0\0a\0", b"\3\0\0", b"\3\0\0\0a\0\0\0"):
        message.raw_input_contents[0] = cut
        assert field_at_fault(read_inputs, message) == "inputs[text]"


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT32", "int_contents", [-5, 5]),
        ("INT64", "int64_contents", [1 << 40, -1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, 2.0]),
        ("BYTES", "bytes_contents", [b"a\0", b""]),
    ],
)
def test_typed_contents_are_read(datatype, field, values):
    message = oip.ModelInferRequest()
    getattr(message.inputs.add(name="x", datatype=datatype, shape=[2]).contents, field).extend(values)
    assert read_inputs(message)["x"].values.tolist() == values
    message.inputs[0].contents.fp64_contents.append(1.0)
    message.inputs[0].contents.uint64_contents.append(1)
    assert field_at_fault(read_inputs, message) == "inputs[x]"


def test_typed_contents_outside_their_datatype_are_refused():
    message = oip.ModelInferRequest()
    message.inputs.add(name="x", datatype="UINT8", shape=[1]).contents.uint_contents.append(256)
    assert field_at_fault(read_inputs, message) == "inputs[x]"
