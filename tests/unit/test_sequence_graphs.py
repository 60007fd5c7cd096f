"""Whole-sequence graphs become step graphs, or are refused with the reason: cases of onnx, and our own."""

import importlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as node_cases

from model_export.from_file import export_file, load
from model_export.from_file import main as export_main
from model_export.from_sequence import Refused, to_step_graph
from model_export.surgery.axes import regroup
from model_export.surgery.preparing import parsed

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
INFO = helper.make_tensor_value_info

BACKWARD = "starts with the last token"
NO_TOKEN = "is a single number without a time axis"
NO_TENSOR = "is no tensor but a"

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
def test_cases_of_onnx(cases, name):
    if name not in cases:
        pytest.skip("not in this version of onnx")
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


def stream(step, document, feed, chunk=1):
    """Runs a step graph in a closed loop from its contract alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(step.SerializeToString(), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
    kinds = {node.name: dtypes.get(node.type) for node in session.get_inputs()}
    entries = document["input"] if isinstance(document["input"], list) else [document["input"]]
    first = entries[0]
    place = first["axes"].index("time")
    count = feed[first["name"]].shape[place]
    rows = feed[first["name"]].shape[first["axes"].index("batch")] if "batch" in first["axes"] else 1
    states = {}
    for entry in document["state"]:
        shape = [extent for extent in entry["axes"] if extent != "batch"]
        value = np.array(np.broadcast_to(np.asarray(entry["initial"], kinds[entry["input"]]), shape))
        if "batch" in entry["axes"]:
            at = entry["axes"].index("batch")
            value = np.repeat(np.expand_dims(value, at), rows, at)
        states[entry["input"]] = value
    names = [entry["name"] for entry in document["output"]] + [
        entry["output"] for entry in document["state"]
    ]
    parts = []
    for start in range(0, count, chunk):
        here = {}
        for entry in entries:
            at = entry["axes"].index("time")
            here[entry["name"]] = np.take(feed[entry["name"]], range(start, min(start + chunk, count)), at)
        given = {entry["name"]: feed[entry["name"]] for entry in document.get("session_input", [])}
        results = dict(zip(names, session.run(names, {**here, **given, **states}), strict=True))
        states = {entry["input"]: results[entry["output"]] for entry in document["state"]}
        parts.append(results)
    joined = {}
    for entry in document["output"]:
        at = entry["axes"].index("time") if "time" in entry["axes"] else None
        columns = [part[entry["name"]] for part in parts]
        joined[entry["name"]] = columns[-1] if at is None else np.concatenate(columns, at)
    return joined


class Graph:
    """Collects the nodes of a whole-sequence graph."""

    def __init__(self, seed=3):
        self.nodes, self.weights, self.rng = [], [], np.random.default_rng(seed)

    def add(self, op, *inputs, count=1, domain="", **attributes):
        names = [f"{op}_{len(self.nodes)}_{at}" for at in range(count)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, domain=domain, name=names[0], **attributes)
        )
        return names if count > 1 else names[0]

    def const(self, value, dtype=np.float32):
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def ints(self, *values):
        return self.const(list(values), np.int64)

    def normal(self, *shape):
        return self.const(self.rng.standard_normal(shape) * 0.4)

    def recurrent(self, x, kind="GRU", width=6, hidden=8, start="", **options):
        """A layer over time first; returns (time, batch, hidden) and the last state."""
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * hidden
        weights = [self.normal(1, gates, width), self.normal(1, gates, hidden), self.normal(1, 2 * gates)]
        every, last = self.add(kind, x, *weights, "", start, count=2, hidden_size=hidden, **options)
        return self.add("Squeeze", every, self.ints(1)), last

    def model(self, outputs, shape=("time", "batch", 6), dtype=FLOAT, opset=17, inputs=()):
        graph = helper.make_graph(
            self.nodes,
            "net",
            [INFO("x", dtype, shape), *inputs],
            [INFO(name, FLOAT, None) for name in outputs],
            self.weights,
        )
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check_streams(model, shape, dtype=np.float32, **given):
    """Converts a graph and compares its stream with the whole; returns the contract."""
    step, document = to_step_graph(model)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(dtype) if dtype == np.float32 else rng.integers(0, 30, shape)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    expected = dict(zip(names, session.run(None, {"x": x, **given}), strict=True))
    for chunk in (1, 3):
        for name, value in stream(step, document, {"x": x, **given}, chunk).items():
            np.testing.assert_allclose(value, expected[name].reshape(value.shape), atol=1e-5)
    return document


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
    assert document["input"]["axes"] == ["batch", "time"]
    assert "rows_per_run" not in document


def test_frozen_batch_and_time_are_freed():
    """A graph that was exported with 7 tokens of 3 rows, shapes and first state written out as numbers."""
    net = Graph()
    every, _ = net.recurrent("x", "GRU", start=net.const(np.full((1, 3, 8), 0.25)))
    flat = net.add("Reshape", every, net.ints(21, 8))
    result = net.add("Reshape", net.add("MatMul", flat, net.normal(8, 5)), net.ints(7, 3, 5))
    step, document = to_step_graph(net.model([result], (7, 3, 6)))
    assert document["input"]["axes"] == ["time", "batch", 6]
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


def loop_model(turns=None, goes_on=True, start=None):
    """h = tanh(x[t] W + h U), a Loop over tokens."""
    net = Graph()
    body = Graph(seed=4)
    here = body.add("Gather", "x", "turn", axis=0)
    after = body.add("Tanh", body.add("Add", body.add("MatMul", here, "w"), body.add("MatMul", "h", "u")))
    condition = "on" if goes_on else body.add("Not", "on")
    graph = helper.make_graph(
        [*body.nodes, helper.make_node("Identity", [condition], ["on_next"]),
         helper.make_node("Identity", [after], ["h_next"]),
         helper.make_node("Identity", [after], ["h_shown"])],
        "body",
        [INFO("turn", INT64, []), INFO("on", TensorProto.BOOL, []), INFO("h", FLOAT, None)],
        [INFO("on_next", TensorProto.BOOL, []), INFO("h_next", FLOAT, None), INFO("h_shown", FLOAT, None)],
    )  # fmt: skip
    net.weights += [
        numpy_helper.from_array(net.rng.standard_normal(shape).astype(np.float32) * 0.4, name)
        for name, shape in (("w", (6, 8)), ("u", (8, 8)))
    ]
    extents = net.add("Shape", "x")
    count = (
        net.add("Gather", extents, net.const(0, np.int64)) if turns is None else net.const(turns, np.int64)
    )
    rows = net.add("Slice", extents, net.ints(1), net.ints(2))
    zeros = net.add("ConstantOfShape", net.add("Concat", rows, net.ints(8), axis=0))
    _, every = net.add("Loop", count, net.const(True, bool), start or zeros, count=2, body=graph)
    return net.model([every])


def test_a_loop_over_tokens():
    document = check_streams(loop_model(), (9, 2, 6))
    assert document["state"][0]["axes"] == ["batch", 8]


def refused(model, constants=None):
    with pytest.raises(Refused) as caught:
        to_step_graph(model, constants)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loops_that_do_not_follow_the_tokens():
    assert "does not turn once for each token" in refused(loop_model(turns=5))
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
    assert document["input"]["axes"] == ["time", 1, 6]


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
    with pytest.raises(Refused, match="cut off"):
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


TORCH = [
    ("GRU", True, {}), ("LSTM", False, {"num_layers": 2}), ("RNN", True, {"nonlinearity": "relu"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "batch_first", "options"), TORCH)
def test_exports_of_pytorch(tmp_path, kind, batch_first, options):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = getattr(torch.nn, kind)(6, 8, batch_first=batch_first, **options)
            self.readout = torch.nn.Linear(8, 5)

        def forward(self, x):
            return self.readout(self.layers(x)[0])

    net = Net().eval()
    x = torch.randn(9, 9, 6)
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (x,), path, dynamo=False, input_names=["x"], output_names=["y"])  # all fixed
    step, document = to_step_graph(load(path))
    with torch.inference_mode():
        expected = net(x).numpy()
    np.testing.assert_allclose(stream(step, document, {"x": x.numpy()})["y"], expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    from model_export.from_keras import to_sequence_graph

    layers = keras.layers
    ids = [keras.Input((None,)), layers.Embedding(30, 6)]
    rows = [keras.Input(batch_shape=(2, None, 6))]
    for chain in (
        [*ids, layers.LSTM(8, return_sequences=True), layers.GRU(8), layers.Dense(4, activation="softmax")],
        [
            *rows,
            layers.Conv1D(6, 3, padding="causal"),
            layers.SimpleRNN(8, return_sequences=True, stateful=True),
        ],
        [
            *rows,
            layers.GRU(8, reset_after=False, stateful=True, return_sequences=True),
            layers.LayerNormalization(),
        ],
    ):
        net = keras.Sequential(chain)
        rng = np.random.default_rng(1)
        for weight in net.weights:
            weight.assign(weight.numpy() + 0.1 * rng.standard_normal(weight.shape).astype(np.float32))
        step, document = to_step_graph(to_sequence_graph(net))
        tokens = rng.integers(0, 30, (2, 12)) if chain[0] is ids[0] else rng.standard_normal((2, 12, 6))
        tokens = tokens.astype(np.int64 if chain[0] is ids[0] else np.float32)
        for layer in net.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
        expected = net.predict(tokens, verbose=0)
        np.testing.assert_allclose(
            stream(step, document, {"tokens": tokens})["result"], expected, atol=1e-5
        )
    with pytest.raises(Refused, match="Bidirectional"):
        to_sequence_graph(keras.Sequential([*ids, layers.Bidirectional(layers.GRU(8))]))
