"""Builds step graphs for tests, node by node, with their contract; each function returns a file's bytes."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

INFO = helper.make_tensor_value_info
ONNX_DTYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64, "int32": TensorProto.INT32, "bool": TensorProto.BOOL,
}  # fmt: skip
WIDTH = HIDDEN = 8


class Builder:
    """Collects the nodes and weights of one step graph.

    Args:
        vocabulary: Ids; 0 makes it a graph of features.
        time: With a time axis.
    """

    def __init__(self, *, vocabulary=0, time=False, width=None):
        self.vocabulary, self.time, self.width = vocabulary, time, width or WIDTH
        self.nodes, self.weights, self.states, self.outputs, self.switches = [], [], [], [], []
        self.rng = np.random.default_rng(3)

    def add(self, op, *inputs, count=1, name=None, **attributes):
        """Adds a node; returns the name of its output, or a list of names."""
        names = [name or f"{op}_{len(self.nodes)}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names if count > 1 else names[0]

    def const(self, value, dtype=np.float32):
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def normal(self, *shape, scale=0.4, dtype=np.float32):
        return self.const(self.rng.standard_normal(shape) * scale, dtype)

    def state(self, name, *shape, dtype="float32", axis=0):
        """Declares a state; its successor is to be named NAME_next."""
        self.states.append((name, list(shape), dtype, axis))
        return name

    def output(self, value, *shape, name="y", dtype="float32", role="raw", switch=None, is_last=False):
        """Declares an output, of each token or of the last one of a run."""
        self.add("Identity", value, name=name)
        self.outputs.append((name, list(shape), dtype, role, switch, is_last))

    def follows(self, state, value):
        self.add("Identity", value, name=f"{state}_next")

    def bytes(self, **extra):
        leading = ["time", "batch"] if self.time else ["batch"]
        token = {"name": "x", "kind": "token_id" if self.vocabulary else "features", "time_axis": self.time}
        token |= (
            {"dtype": "int64", "width": 1} if self.vocabulary else {"dtype": "float32", "width": self.width}
        )
        kind = TensorProto.INT64 if self.vocabulary else TensorProto.FLOAT
        inputs = [INFO("x", kind, leading + ([] if self.vocabulary else [self.width]))]
        outputs = []
        for name, shape, dtype, axis in self.states:
            axes = [*shape[:axis], "batch", *shape[axis:]]
            inputs.append(INFO(name, ONNX_DTYPES[dtype], axes))
            outputs.append(INFO(f"{name}_next", ONNX_DTYPES[dtype], axes))
        for name, shape, dtype, *_, is_last in self.outputs:
            outputs.append(INFO(name, ONNX_DTYPES[dtype], (["batch"] if is_last else leading) + shape))
        for name in self.switches:
            inputs.append(INFO(name, TensorProto.BOOL, []))
            self.weights.append(numpy_helper.from_array(np.array(True), name))
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        domains = sorted({node.domain for node in self.nodes} | {""})
        opsets = [helper.make_opsetid(domain, 20 if domain == "" else 1) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        topics = {
            "input": token,
            "states": [
                {"name": name, "input": name, "output": f"{name}_next", "dtype": dtype, "shape": shape,
                 "batch_axis": axis, "initial": "zeros"}
                for name, shape, dtype, axis in self.states
            ],
            "outputs": [
                {"name": name, "dtype": dtype, "shape": shape, "role": role}
                | ({} if switch is None else {"switch": switch})
                | ({"axes": ["batch", *shape]} if is_last else {})
                for name, shape, dtype, role, switch, is_last in self.outputs
            ],
        } | extra  # fmt: skip
        if self.vocabulary:
            topics["vocabulary"] = {"kind": "ids", "size": self.vocabulary}
        texts = {f"holdfast.{name}": json.dumps(value) for name, value in topics.items()}
        helper.set_model_props(model, {"holdfast.contract_version": "1", **texts})
        return model.SerializeToString()


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(kind="LSTM", *, layers=1, direction="forward", vocabulary=0, time=True, **extra):
    """ONNX's own recurrent operators as torch exports them: states (layers * directions, batch, hidden)."""
    net = Builder(vocabulary=vocabulary, time=time)
    directions = 2 if direction == "bidirectional" else 1
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    for name in names:
        net.state(name, layers * directions, HIDDEN, axis=1)
    below = net.add("Gather", net.normal(vocabulary, WIDTH), "x") if vocabulary else "x"
    if not time:
        below = net.add("Unsqueeze", below, net.const([0], np.int64))
    width, last = WIDTH, {name: [] for name in names}
    for layer in range(layers):
        ends = [net.const([at], np.int64) for at in (layer * directions, (layer + 1) * directions, 0)]
        first = [net.add("Slice", name, *ends) for name in names]
        gates = GATES[kind] * HIDDEN
        weights = [net.normal(directions, gates, size) for size in (width, HIDDEN)]
        bias = net.normal(directions, 2 * gates, scale=0.1)
        options = {"linear_before_reset": 1} if kind == "GRU" else {}
        every, *after = net.add(
            kind, below, *weights, bias, "", *first, count=1 + len(names), hidden_size=HIDDEN,
            direction=direction, **options,
        )  # fmt: skip
        for name, value in zip(names, after, strict=True):
            last[name].append(value)
        joined = net.add("Transpose", every, perm=[0, 2, 1, 3])
        width = HIDDEN * directions
        below = net.add("Reshape", joined, net.const([0, 0, width], np.int64))
    for name in names:
        net.follows(name, net.add("Concat", *last[name], axis=0))
    result = net.add("MatMul", below, net.normal(width, 5))
    result = result if time else net.add("Squeeze", result, net.const([0], np.int64))
    net.output(result, 5)
    return net.bytes(**extra)


def cell(step, *, dtype="float32", width=None, size=None, **extra):
    """A step without a time axis; `step(net, x, h)` returns the next h and y."""
    net, size = Builder(width=width), size or HIDDEN
    h = net.state("h", size, dtype=dtype)
    after, result = step(net, "x", h)
    net.follows("h", after)
    net.output(result, size)
    return net.bytes(**extra)


def elman(net, x, h):
    """tanh(W x + U h), the plainest of all."""
    total = net.add("Add", net.add("MatMul", x, net.normal(WIDTH, HIDDEN)),
                    net.add("MatMul", h, net.normal(HIDDEN, HIDDEN)))  # fmt: skip
    return net.add("Tanh", total)


def over_time(step, *, width=None, size=None, **extra):
    """A graph with a time axis; `step(net, x, h)` returns y (time, batch, size), whose last row is h."""
    net, size = Builder(time=True, width=width), size or HIDDEN
    h = net.state("h", size)
    result = step(net, "x", h)
    net.output(result, size)
    net.follows("h", net.add("Gather", result, net.const(-1, np.int64), axis=0))
    return net.bytes(**extra)


def scan(net, x, h, size=None, step=None):
    """Runs an Elman cell, or `step`, over time by Scan; returns every h."""
    outside, net.nodes, size = net.nodes, [], size or HIDDEN
    after = (step or elman)(net, "x_here", "h_here")
    net.add("Identity", after, name="h_after")
    net.add("Identity", after, name="h_shown")
    shape = ["batch", size]
    inputs = [
        INFO("h_here", TensorProto.FLOAT, shape),
        INFO("x_here", TensorProto.FLOAT, ["batch", net.width]),
    ]
    outputs = [INFO(name, TensorProto.FLOAT, shape) for name in ("h_after", "h_shown")]
    body = helper.make_graph(net.nodes, "step", inputs, outputs)
    net.nodes = outside
    return net.add("Scan", h, x, count=2, body=body, num_scan_inputs=1)[1]
