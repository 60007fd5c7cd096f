"""Builds whole-sequence graphs for tests, and runs what becomes of them as a stream by its contract."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_export.from_sequence import to_step_graph

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
INFO = helper.make_tensor_value_info


def stream(step, document, feed, chunk=1):
    """Runs a step graph in a closed loop from its contract alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(step.SerializeToString(), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
    kinds = {node.name: dtypes.get(node.type) for node in session.get_inputs()}
    entries = document["input"]
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


def loop_model(turns=None, goes_on=True, start=None, shape=("time", "batch", 6)):
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
    return net.model([every], shape)
