"""Smaller step graphs, int8 weights and float16 states, and the drift gate that lets them through."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_export import drift as drift_gate
from model_export.drift import check_drift
from model_export.from_file import export_file
from model_export.from_sequence import Refused, to_step_graph
from model_export.quantise import per_channel, quantise
from model_export.written import contract_files, write_model
from service.model.document import from_metadata
from tests.support.sequence_graphs import Graph, loop_model, stream

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def shipped():
    """The GRU over bytes, with the contract in its metadata as a document."""
    model = onnx.load(MODELS / "python-source" / "1" / "model.onnx")
    return model, from_metadata({entry.key: entry.value for entry in model.metadata_props})


def lstm(hidden=32):
    """An LSTM of ONNX's own between a table and a readout, as a whole sequence."""
    net = Graph()
    every, _ = net.recurrent(net.add("Gather", net.normal(60, 24), "x"), "LSTM", width=24, hidden=hidden)
    logits = net.add("MatMul", every, net.normal(hidden, 60))
    return net.model([logits], ("time", "batch"), TensorProto.INT64)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Fewer steps, but for the test that is about all of them; speed is no matter here."""
    monkeypatch.setattr(drift_gate, "_ROUNDS", 1)
    monkeypatch.setattr(drift_gate, "_RUNS", 2)
    if request.function is not test_int8_of_the_shipped_network:
        monkeypatch.setattr(drift_gate, "STEPS", 200)


def test_each_channel_has_its_own_scale():
    values = np.array([[1.0, 100.0], [-0.5, 25.0], [0.0, 0.0]], np.float32)
    packed, scales = per_channel(values, 1)
    np.testing.assert_array_equal(packed, [[127, 127], [-64, 32], [0, 0]])
    np.testing.assert_allclose(scales, [1 / 127, 100 / 127])
    packed, scales = per_channel(values, 0)
    assert scales[2] == 1  # a channel of zeros
    assert np.abs(packed * scales[:, np.newaxis] - values).max() <= scales.max() / 2


def test_int8_of_the_shipped_network(shipped):
    small, document = quantise(*shipped, int8=True)
    drift = check_drift(shipped, (small, document))
    assert drift.file_bytes[1] < 0.27 * drift.file_bytes[0]
    assert 1e-4 < drift.peak < 0.02
    assert drift.growth < 2
    assert drift.bits_per_byte is not None
    assert abs(drift.bits_per_byte[1] - drift.bits_per_byte[0]) < 0.01


def test_float16_states_of_the_shipped_network(shipped):
    small, document = quantise(*shipped, float16_state=True)
    assert document["state"][0]["name"] == "h"
    drift = check_drift(shipped, (small, document))
    assert drift.state_bytes == (1024, 512)
    assert 0 < drift.peak < 2e-3


@pytest.mark.process
def test_both_pass_the_servers_own_trial(shipped, tmp_path):
    small, document = quantise(*shipped, int8=True, float16_state=True)
    write_model(small, document, tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 500_000


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_state_in_a_loop_is_rounded_after_every_token(dtype):
    """So that it does not matter how tokens are divided into runs."""
    step, document = to_step_graph(loop_model())
    if dtype == np.float16:
        step, document = quantise(step, document, float16_state=True)
    x = np.random.default_rng(0).standard_normal((40, 2, 6)).astype(np.float32)
    one, many = (stream(step, document, {"x": x}, chunk)["Loop_5_1"] for chunk in (1, 40))
    np.testing.assert_allclose(one, many, atol=1e-6)


@pytest.mark.process
def test_a_whole_sequence_file_made_small(tmp_path):
    source = tmp_path / "whole.onnx"
    source.write_bytes(lstm().SerializeToString())
    out = tmp_path / "mine" / "1"
    document = export_file(source, out, int8=True, float16_state=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "contract.toml", "drift.json", "drift.svg", "model.onnx",
    ]  # fmt: skip
    assert "growth" in document["facts"]["drift"]
    figures = json.loads((out / "drift.json").read_text())
    assert len(figures["by_step"]) == drift_gate.STEPS
    assert (out / "drift.svg").read_text().startswith("<svg")
    kept = {one.name: one for one in onnx.load(out / "model.onnx").graph.initializer}
    assert sum(one.data_type == TensorProto.INT8 for one in kept.values()) == 4  # table, W, R, readout
    with pytest.raises(Refused, match=r"drift is .* at most 1e-06 is let through"):
        export_file(source, tmp_path / "mine" / "2", int8=True, max_drift=1e-6)
    assert not (tmp_path / "mine" / "2").exists()


@pytest.mark.process
def test_a_model_of_the_server_made_small(tmp_path):
    """It has its contract inside; a model with contract.toml beside it is taken as well."""
    document = export_file(MODELS / "python-source" / "1", tmp_path / "1", float16_state=True)
    assert document["state"][0]["input"] == "h_float16"
    with pytest.raises(Refused, match="no state of float32"):
        export_file(tmp_path / "1", tmp_path / "2", float16_state=True)


def test_what_overflows_float16_is_refused():
    """A running sum of large numbers is infinite there."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "one"], ["next"]),
            helper.make_node("Identity", ["next"], ["shown"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in ("s", "one")],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6])
            for name in ("next", "shown")
        ],
    )
    net = Graph()
    rows = net.add("Slice", net.add("Shape", "x"), net.ints(1), net.ints(2))
    zeros = net.add("ConstantOfShape", net.add("Concat", rows, net.ints(6), axis=0))
    large = net.add("Mul", net.add("Abs", "x"), net.const(1e4))
    _, every = net.add("Scan", zeros, large, count=2, body=body, num_scan_inputs=1)
    whole = to_step_graph(net.model([every]))
    with pytest.raises(Refused, match="drift is inf"):
        check_drift(whole, quantise(*whole, float16_state=True))


def test_nothing_to_make_smaller():
    step, document = to_step_graph(loop_model())
    with pytest.raises(Refused, match="no float32 weight of 1024 values"):
        quantise(step, document, int8=True)
    old = onnx.ModelProto()
    old.CopyFrom(step)
    old.opset_import[0].version = 11
    with pytest.raises(Refused, match="of version 11; int8 needs 13"):
        quantise(old, document, int8=True)


def test_long_first_states_go_into_a_file():
    first = np.linspace(0, 1, 65).tolist()
    document = {
        "input": {"name": "x", "axes": ["batch", 1]},
        "state": [{"name": "h", "input": "h", "output": "h2", "axes": ["batch", 65], "initial": first}],
    }
    text, files = contract_files(document)
    assert b'initial = "h.npy"' in text
    assert list(files) == ["h.npy"]
    assert document["state"][0]["initial"] == first
