"""Whole-sequence graphs become step graphs, or are refused with the reason."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_export.from_file import export_file, load
from model_export.from_file import main as export_main
from model_export.from_sequence import Refused, to_step_graph
from model_export.surgery.axes import regroup
from model_export.surgery.preparing import parsed
from tests.support.sequence_graphs import FLOAT, INFO, INT64, Graph, check_streams, loop_model, stream


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_two_layers_batch_first_between_an_embedding_and_a_softmax(kind):
    net = Graph()
    below = net.add("Transpose", net.add("Gather", net.normal(30, 6), "x"), perm=[1, 0, 2])
    first, _ = net.recurrent(below, kind)
    normed = net.add("LayerNormalization", first, net.normal(8), net.normal(8))
    second, _ = net.recurrent(normed, kind, width=8)
    flat = net.add("Reshape", net.add("Transpose", second, perm=[1, 0, 2]), net.ints(-1, 8))
    probs = net.add("Softmax", net.add("Gemm", flat, net.normal(8, 30), net.normal(30)), axis=-1)
    # the shape of the first two axes comes from the graph, as PyTorch writes it
    leading = net.add("Slice", net.add("Shape", "x"), net.ints(0), net.ints(2))
    result = net.add("Reshape", probs, net.add("Concat", leading, net.ints(30), axis=0))
    document = check_streams(net.model([result], ("batch", "time"), INT64), (2, 9), np.int64)
    assert document["vocabulary"] == {"kind": "ids", "size": 30}
    assert document["output"][0]["role"] == "probs"
    assert document["input"][0]["axes"] == ["batch", "time"]
    assert "rows_per_run" not in document


def test_frozen_batch_and_time_are_freed():
    """A graph that was exported with 7 tokens of 3 rows, shapes and first state written out as numbers."""
    net = Graph()
    every, _ = net.recurrent("x", "GRU", start=net.const(np.full((1, 3, 8), 0.25)))
    flat = net.add("Reshape", every, net.ints(21, 8))
    result = net.add("Reshape", net.add("MatMul", flat, net.normal(8, 5)), net.ints(7, 3, 5))
    step, document = to_step_graph(net.model([result], (7, 3, 6)))
    assert document["input"][0]["axes"] == ["time", "batch", 6]
    assert document["state"][0]["initial"] == [[0.25] * 8]
    x = np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)
    one, many = (stream(step, document, {"x": x}, chunk)[result] for chunk in (1, 13))
    assert one.shape == (40, 5, 5)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_last_token_only():
    net = Graph()
    every, _ = net.recurrent(net.add("Transpose", "x", perm=[1, 0, 2]))
    back = net.add("Transpose", every, perm=[1, 0, 2])
    last = net.add("Gather", back, net.const(-1, np.int64), axis=1)
    result = net.add("MatMul", last, net.normal(8, 4))
    document = check_streams(net.model([result], ("batch", "time", 6)), (2, 9, 6))
    assert document["output"][0]["axes"] == ["batch", 4]


@pytest.mark.parametrize("how", ["pads of the node", "Pad", "cut off behind"])
def test_causal_convolution_keeps_its_context(how):
    net = Graph()
    below = net.add("Transpose", "x", perm=[0, 2, 1])
    if how == "Pad":
        below = net.add("Pad", below, net.ints(0, 0, 4, 0, 0, 0))
    pads = {"pads of the node": [4, 0], "Pad": [0, 0], "cut off behind": [4, 4]}[how]
    conv = net.add("Relu", net.add("Conv", below, net.normal(6, 6, 3), dilations=[2], pads=pads))
    if how == "cut off behind":
        conv = net.add("Slice", conv, net.ints(0), net.ints(-4), net.ints(2))
    every, _ = net.recurrent(net.add("Transpose", conv, perm=[2, 0, 1]))
    document = check_streams(net.model([every], ("batch", "time", 6)), (2, 9, 6))
    assert document["state"][0]["axes"] == ["batch", 6, 4]


def test_first_state_and_last_state_of_the_caller_become_a_state():
    net = Graph()
    every, last = net.recurrent("x", start="h0")
    model = net.model([every, last], inputs=[INFO("h0", FLOAT, [1, "batch", 8])])
    document = check_streams(model, (9, 2, 6), h0=np.zeros((1, 2, 8), np.float32))
    assert [entry["name"] for entry in document["output"]] == [every]


def test_an_input_of_each_session():
    net = Graph()
    extra = net.add("MatMul", "speaker", net.normal(4, 6))
    every, _ = net.recurrent(net.add("Add", "x", extra))
    model = net.model([every], inputs=[INFO("speaker", FLOAT, ["batch", 4])])
    document = check_streams(model, (9, 2, 6), speaker=np.ones((2, 4), np.float32))
    assert document["session_input"] == [{"name": "speaker", "axes": ["batch", 4]}]


def test_a_loop_over_tokens():
    document = check_streams(loop_model(), (9, 2, 6))
    assert document["state"][0]["axes"] == ["batch", 8]


def test_a_loop_with_its_number_of_turns_written_out():
    step, document = to_step_graph(loop_model(turns=9, shape=(9, "batch", 6)))
    x = np.random.default_rng(0).standard_normal((20, 2, 6)).astype(np.float32)
    one, many = (next(iter(stream(step, document, {"x": x}, chunk).values())) for chunk in (1, 20))
    assert one.shape == (20, 2, 8)
    np.testing.assert_allclose(one, many, atol=1e-6)


def refused(model, constants=None):
    with pytest.raises(Refused) as caught:
        to_step_graph(model, constants)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loops_that_do_not_follow_the_tokens():
    assert "does not iterate once for each token" in refused(loop_model(turns=5))
    assert "may end before the last token" in refused(loop_model(goes_on=False))


def behind(add, shape=("time", "batch", 6), **options):
    """A GRU with something behind it."""
    net = Graph()
    every, last = net.recurrent("x", **options)
    return net.model([add(net, every, last)], shape)


LOOKS = {
    "mean over time": (lambda net, y, h: net.add("ReduceMean", y, axes=[0]), "reduces the time"),
    "softmax over time": (lambda net, y, h: net.add("Softmax", y, axis=0), "normalises over the time"),
    "sum along time": (
        lambda net, y, h: net.add("CumSum", y, net.const(0, np.int64)), "adds up along the time"
    ),
    "attention": (
        lambda net, y, h: net.add(
            "MatMul", net.add("Transpose", y, perm=[1, 0, 2]), net.add("Transpose", y, perm=[1, 2, 0])
        ),
        "every token against every other",
    ),
    "flip": (
        lambda net, y, h: net.add(
            "Slice", y, net.ints(-1), net.ints(-(1 << 40)), net.ints(0), net.ints(-1)
        ),
        "turns the time axis round",
    ),
    "last spread by zeros": (
        lambda net, y, h: net.add("Add", h, net.add("ConstantOfShape", net.add("Shape", y))),
        "spreads what is known after the last token",
    ),
    "last beside all": (lambda net, y, h: net.add("Add", y, h), "earlier tokens see later ones"),
    "first token": (
        lambda net, y, h: net.add("Gather", y, net.const(0, np.int64), axis=0), "picks token 0 by itself"
    ),
    "number of tokens": (
        lambda net, y, h: net.add(
            "Div", y, net.add("Cast", net.add("Gather", net.add("Shape", "x"), net.ints(0)), to=FLOAT)
        ),
        "number of tokens or rows",
    ),
    "random": (lambda net, y, h: net.add("Add", y, net.add("RandomNormalLike", y)), "draws random numbers"),
    "batch scale": (
        lambda net, y, h: net.add("DynamicQuantizeLinear", y, count=3)[0], "rows see one another"
    ),
    "custom operator": (lambda net, y, h: net.add("Thing", y, domain="mine"), "custom operator of 'mine'"),
    "unknown operator": (lambda net, y, h: net.add("Det", y), "nothing is known of what this operator"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOOKS)
def test_what_looks_across_time_or_rows_is_refused(what):
    add, reason = LOOKS[what]
    with pytest.raises(Refused, match=reason):
        to_step_graph(behind(add))


def test_rows_that_see_one_another_run_one_by_one():
    _, document = to_step_graph(behind(lambda net, y, h: net.add("ReduceMean", y, axes=[1])))
    assert document["rows_per_run"] == 1
    assert document["input"][0]["axes"] == ["time", 1, 6]


@pytest.mark.parametrize(("pads", "reason"), [([1, 1], "looks 1 token ahead"), ([0, 0], "2 outputs less")])
def test_convolutions_that_are_not_causal(pads, reason):
    net = Graph()
    conv = net.add("Conv", net.add("Transpose", "x", perm=[0, 2, 1]), net.normal(6, 6, 3), pads=pads)
    every, _ = net.recurrent(net.add("Transpose", conv, perm=[2, 0, 1]))
    assert reason in refused(net.model([every], ("batch", "time", 6)))


def test_weights_are_given_or_asked_for():
    net = Graph()
    every, _ = net.recurrent("x")
    net.weights, held = [one for one in net.weights if one.name != "constant_0"], net.weights[0]
    model = net.model([every], inputs=[INFO("constant_0", FLOAT, [1, 24, 6])])
    assert "--constant constant_0=constant_0.npy" in refused(model)
    step, _ = to_step_graph(model, {"constant_0": numpy_helper.to_array(held)})
    assert [one.name for one in step.graph.input] == ["x", "h"]
    assert "is float64" in refused(model, {"constant_0": np.zeros((1, 24, 6))})
    assert "is none of the inputs" in refused(model, {"w": np.zeros(1, np.float32)})


def plain():
    return behind(lambda net, y, h: y)


def test_graphs_that_are_not_whole(tmp_path):
    with pytest.raises(Refused, match="is truncated"):
        parsed(plain().SerializeToString()[:-7])
    cyclic = plain()
    cyclic.graph.node[0].input[0] = cyclic.graph.node[1].output[0]
    assert "cyclic" in refused(cyclic)
    double = plain()
    double.graph.node[1].output[0] = double.graph.node[0].output[0]
    double.graph.output[0].name = double.graph.node[0].output[0]
    assert "two things are called" in refused(double)
    missing = plain()
    missing.graph.output[0].name = "nowhere"
    assert "is made by nothing" in refused(missing)
    apart = plain()
    onnx.external_data_helper.convert_model_to_external_data(apart, location="weights", size_threshold=0)
    for weight in apart.graph.initializer:
        onnx.external_data_helper.set_external_data(weight, "weights")
    assert "second file" in refused(apart)
    (tmp_path / "m.onnx").write_bytes(apart.SerializeToString())
    with pytest.raises(Refused, match="second file cannot be read"):
        load(tmp_path / "m.onnx")
    assert "it has no graph" in refused(onnx.ModelProto())


def test_no_state():
    net = Graph()
    result = net.add("Tanh", net.add("MatMul", "x", net.normal(6, 4)))
    assert "no recurrent node" in refused(net.model([result]))
    net = Graph()
    assert "not finite" in refused(
        net.model([net.add("Log", net.add("Sub", net.recurrent("x")[0], net.const(9.0)))])
    )


def test_a_projection():
    net = Graph()
    weights = [net.normal(1, 32, 6), net.normal(1, 32, 4), net.normal(1, 64)]
    every, _ = net.add("LSTM", "x", *weights, count=2, hidden_size=8)
    assert "8 units and recurrent weights for 4: a projection" in refused(net.model([every]))


def test_operators_of_onnxruntime_that_have_one_scale_for_a_batch():
    every = "DynamicQuantizeLSTM"
    assert "rows see one another" in refused(
        behind(lambda net, y, h: net.add(every, y, domain="com.microsoft"))
    )


def test_a_shape_with_two_readings_is_none():
    batch, time = ("batch",), ("time",)
    frozen = {"time": 3, "batch": 3}
    assert regroup([time, batch, (8,)], [9, 8], frozen) == (("time", "batch"), (8,))
    assert regroup([time, batch, (8,)], [3, 3, 2, 4], frozen) == (time, batch, (2,), (4,))
    assert regroup([time, batch, (8,)], [3, -1], frozen) == (time, ("batch", 8))
    assert regroup([time, (8,)], [5, 8], frozen) is None
    assert regroup([time, ("batch", 4)], [-1, 4], {"time": None, "batch": None}) == (
        ("time", "batch"),
        (4,),
    )


@pytest.mark.process
def test_a_file_becomes_a_model_that_the_server_takes(tmp_path, capsys):
    """Through the server's own trial, in a process of its own; nothing is written of what is refused."""
    source = tmp_path / "whole.onnx"
    source.write_bytes(plain().SerializeToString())
    out = tmp_path / "mine" / "1"
    document = export_file(source, out)
    assert sorted(path.name for path in out.iterdir()) == ["contract.toml", "model.onnx"]
    assert "max difference" in document["facts"]["parity"]
    assert export_main([str(source), "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    source.write_bytes(behind(LOOKS["mean over time"][0]).SerializeToString())
    assert export_main([str(source), "--out", str(tmp_path / "mine" / "2")]) == 1
    assert not (tmp_path / "mine" / "2").exists()
