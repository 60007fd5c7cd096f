"""Triton's config.pbtxt read as a contract, and what of it is refused."""

import io

import numpy as np
import pytest

from service.model.config_pbtxt import read_config
from service.model.contract import ContractError
from service.model.text_proto import TextProtoError, parse

CONFIG = """
name: "counter"   # as the folder
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "y", data_type: TYPE_FP32, dims: [ 2 ], label_filename: "labels.txt" }
]
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  oldest { max_candidate_sequences: 4 }
  state [
    {
      input_name: "h" output_name: "h_next" data_type: TYPE_FP32 dims: [ 2, 3 ]
      initial_state { name: "first" data_type: TYPE_FP32 dims: [ 2, 3 ] data_file: "h0" }
    },
    {
      input_name: "n" output_name: "n_next" data_type: TYPE_INT64 dims: 1
      initial_state: { name: "zeros" data_type: TYPE_INT64 dims: [ 1 ] zero_data: true }
    }
  ]
}
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "a" value: { string_value: "b" } }
"""
FILES = {
    "initial_state/h0": np.arange(6, dtype="<f4").tobytes(),
    "labels.txt": b"speech\nnoise\n",
}


def read(name):
    try:
        return FILES[name]
    except KeyError:
        raise FileNotFoundError(2, "No such file or directory", name) from None


def document_of(text):
    return read_config(text, read).document


def test_states_inputs_outputs_and_what_sessions_begin_with():
    assert document_of(CONFIG) == {
        "rows_per_run": 8,
        "input": [{"name": "x", "axes": ["batch", 4]}],
        "state": [
            {"input": "h", "output": "h_next", "axes": ["batch", 2, 3], "initial": "initial_state_0.npy"},
            {"input": "n", "output": "n_next", "axes": ["batch", 1], "initial": 0},
        ],
        "output": [{"name": "y", "axes": ["batch", 2], "labels": ["speech", "noise"]}],
    }


def test_what_a_session_begins_with_becomes_a_file_of_the_contract():
    files = read_config(CONFIG, read).files
    assert list(files) == ["initial_state_0.npy"]
    assert np.array_equal(np.load(io.BytesIO(files["initial_state_0.npy"])), np.arange(6).reshape(2, 3))


def test_without_batching_extents_are_those_of_the_graph():
    text = 'input { name: "x" dims: 1 dims: 4 } output { name: "y" dims: [ -1, 2 ] }'
    assert document_of(text) == {"input": [{"name": "x", "axes": [1, 4]}], "output": [{"name": "y"}]}


def test_a_state_that_is_an_output_as_well_is_a_state():
    text = CONFIG.replace("output [", 'output [ { name: "h_next" dims: [2, 3] },')
    assert [entry["name"] for entry in document_of(text)["output"]] == ["y"]


def test_reshaped_tensors_have_the_shape_of_the_graph():
    text = 'max_batch_size: 2 input { name: "x" dims: 1 reshape { shape: [ ] } }'
    assert document_of(text)["input"] == [{"name": "x", "axes": ["batch"]}]


@pytest.mark.parametrize(
    ("found", "replacement", "reason"),
    [
        (
            "oldest {",
            'control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START } ] } ] oldest {',
            "a control input 'START' (CONTROL_SEQUENCE_START)",
        ),
        ("data_type: TYPE_FP32 dims: [ 2, 3 ]\n", "use_growable_memory: true\n", "state 'h' grows"),
        ("h0", "h1", "state 'h': initial_state/h1 cannot be read: No such file"),
        ("h0", "../h0", "is not the name of a file"),
        ("[ 2, 3 ] data_file", "[ 2, 4 ] data_file", "has 24 bytes, float32 [2, 4] has 32"),
        ("TYPE_FP32 dims: [ 2, 3 ] data", "TYPE_STRING dims: [ 2, 3 ] data", "'TYPE_STRING' is not one of"),
        ("labels.txt", "../labels.txt", "is not beside it"),
        ("max_batch_size: 8", "max_batch_size: many", "expected a number"),
        ("instance_group", "batch_input", "told about the batch"),
        ("parameters", "ensemble_scheduling", "joins several models"),
        ('input_name: "h"', "", "input_name is missing"),
        ("dims: [ 4 ]", 'dims: [ "4" ]', "expected numbers"),
        ("sequence_batching {", "sequence_batching: 3 x {", "expected a message"),
    ],
)
def test_what_no_contract_says_is_refused(found, replacement, reason):
    text = CONFIG.replace(found, replacement)
    assert text != CONFIG
    with pytest.raises(ContractError) as caught:
        document_of(text)
    assert str(caught.value).startswith("config.pbtxt: ")
    assert reason in str(caught.value)


def test_the_text_format():
    assert parse(
        """a: -1 b: 0x1F c: 1.5e3 d: TYPE_X e: "x\\n\\"y" 'z\\x41\\101' f < g: true >; h [1, 2], a: 2"""
    ) == {
        "a": [-1, 2],
        "b": [31],
        "c": [1500.0],
        "d": ["TYPE_X"],
        "e": [b'x\n"yzAA'],
        "f": [{"g": ["true"]}],
        "h": [1, 2],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb {\n c: 2", "line 3: the text ends"),
        ("a: 1\n}", "line 2: expected the name of a field"),
        ("a: @", "line 1: '@' is no field or value"),
        ("a: [1 2]", "expected a comma or ]"),
        ("a: ]", "expected a value"),
        ("a 3", "expected : or {"),
        ('a: "x', "is no field or value"),
        ("a {" * 40, "messages lie more than 32 deep"),
        ("a: 1 " * 300_000, "expected at most"),
    ],
)
def test_what_is_not_of_the_text_format_is_refused_with_its_line(text, reason):
    with pytest.raises(TextProtoError) as caught:
        parse(text)
    assert reason in str(caught.value)
