"""Cases of the package onnx with a recurrence: each streams as recorded, or is refused with the reason."""

import importlib

import numpy as np
import pytest
from onnx.backend.test.case import node as node_cases

from model_export.from_sequence import Refused, to_step_graph
from model_export.surgery import gate
from tests.support.sequence_graphs import stream

BACKWARD = "starts with the last token"
NO_TOKEN = "is a single number without a time axis"
NO_TENSOR = "is not a tensor but a"

CASES = {
    "test_simple_rnn_defaults": None,
    "test_simple_rnn_with_initial_bias": None,
    "test_rnn_seq_length": None,
    "test_simple_rnn_batchwise": None,
    "test_simple_rnn_reverse": BACKWARD,
    "test_simple_rnn_bidirectional": BACKWARD,
    "test_gru_defaults": None,
    "test_gru_with_initial_bias": None,
    "test_gru_seq_length": None,
    "test_gru_batchwise": None,
    "test_gru_reverse": BACKWARD,
    "test_gru_bidirectional": BACKWARD,
    "test_lstm_defaults": None,
    "test_lstm_with_initial_bias": None,
    "test_lstm_with_peepholes": None,
    "test_lstm_batchwise": None,
    "test_lstm_reverse": BACKWARD,
    "test_lstm_bidirectional": BACKWARD,
    "test_scan_sum": None,
    "test_scan9_sum": None,
    "test_scan9_multi_state": None,
    "test_scan9_scalar": None,
    "test_loop11": NO_TOKEN,
    "test_loop13_seq": NO_TENSOR,
    "test_loop16_seq_none": NO_TENSOR,
    "test_linear_attention_linear_expanded": None,
    "test_linear_attention_gated_expanded": None,
    "test_linear_attention_gated_per_head_decay_expanded": None,
    "test_linear_attention_delta_expanded": None,
    "test_linear_attention_gated_delta_expanded": None,
    "test_linear_attention_gated_delta_beta_scalar_expanded": None,
    "test_linear_attention_gated_delta_gqa_expanded": None,
    "test_linear_attention_gated_delta_mqa_expanded": None,
    "test_linear_attention_decode_step_expanded": None,
    "test_linear_attention_prefill_with_past_expanded": None,
    "test_linear_attention_no_past_explicit_zeros_expanded": None,
    "test_linear_attention_explicit_scale_expanded": None,
    "test_linear_attention_fp16_expanded": None,
    "test_linear_attention_linear_t1_no_past_expanded": None,
    "test_range_float_type_positive_delta_expanded": NO_TOKEN,
    "test_range_float16_type_positive_delta_expanded": NO_TOKEN,
    "test_range_int32_type_negative_delta_expanded": NO_TOKEN,
    "test_range_bfloat16_type_positive_delta_expanded": NO_TOKEN,
    "test_sequence_map_identity_1_sequence_expanded": NO_TENSOR,
    "test_sequence_map_identity_2_sequences_expanded": NO_TENSOR,
    "test_sequence_map_identity_1_sequence_1_tensor_expanded": NO_TENSOR,
    "test_sequence_map_add_2_sequences_expanded": NO_TENSOR,
    "test_sequence_map_add_1_sequence_1_tensor_expanded": NO_TENSOR,
    "test_sequence_map_extract_shapes_expanded": NO_TENSOR,
}
"""Case of onnx.backend.test.case.node with a recurrence -> why it is refused; None if it streams. A case
that the installed onnx does not have is skipped, one that is not listed fails a test."""

CONSTANTS = {
    "W",
    "R",
    "B",
    "P",
    "initial",
    "initial_sum",
    "initial_prod",
    "initial_h",
    "initial_c",
    "past_state",
}
RECURRENT = {"RNN", "GRU", "LSTM", "Scan", "Loop"}


@pytest.fixture(scope="session")
def cases():
    """Only the modules that have recurrences: collecting all of them takes 10 s."""
    for module in ("rnn", "gru", "lstm", "scan", "loop", "rangeop", "sequence_map", "linear_attention"):
        try:
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
        except ModuleNotFoundError:
            continue
    found = {}
    for case in node_cases._NodeTestCases:
        if RECURRENT & {node.op_type for node in case.model.graph.node}:
            found[case.name] = case
    return found


def test_every_case_is_listed(cases):
    assert set(cases) <= set(CASES)
    assert len(cases) > 20


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_cases_of_onnx(cases, name, monkeypatch):
    if name not in cases:
        pytest.skip("not in this version of onnx")
    if "linear_attention" in name:
        monkeypatch.setattr(
            gate, "STEPS", 100
        )  # fourteen cases of one kind; the recorded values judge them
    case = cases[name]
    inputs, outputs = case.data_sets[0]
    feed = dict(zip([info.name for info in case.model.graph.input], inputs, strict=True))
    constants = {key: value for key, value in feed.items() if key in CONSTANTS}
    if CASES[name] is not None:
        with pytest.raises(Refused, match=CASES[name]):
            to_step_graph(case.model, constants)
        return
    step, document = to_step_graph(case.model, constants)
    expected = dict(zip([info.name for info in case.model.graph.output], outputs, strict=True))
    tolerance = 2e-3 if name.endswith("fp16_expanded") else 1e-5
    for chunk in (1, 2, 100):
        streamed = stream(step, document, feed, chunk)
        for output in streamed:
            np.testing.assert_allclose(streamed[output], expected[output], atol=tolerance, rtol=tolerance)
