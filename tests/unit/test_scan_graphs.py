"""What the exporter makes of traced graphs, against the equations in numpy: no torch is needed."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from model_export.over_time import scan_over_time
from model_export.recurrent_nodes import LayerWeights, expand

WIDTH, HIDDEN, BATCH, TIME = 3, 5, 2, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(layer, x, h, c):
    """Returns the next h and c, as PyTorch's documentation has them."""
    ours, theirs = x @ layer.inputs + layer.input_bias, h @ layer.recurrent + layer.recurrent_bias
    if layer.kind == "gru":
        (r, z, n), (hr, hz, hn) = np.split(ours, 3, axis=1), np.split(theirs, 3, axis=1)
        r, z = sigmoid(r + hr), sigmoid(z + hz)
        n = np.tanh(n + r * hn)
        return (1 - z) * n + z * h, c
    if layer.kind == "lstm":
        i, f, g, o = np.split(ours + theirs, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return (h if layer.projection is None else h @ layer.projection), c
    return (np.tanh if layer.kind == "tanh" else lambda value: np.maximum(value, 0))(ours + theirs), c


def layer_of(kind, projection=None):
    rng = np.random.default_rng(7)
    gates = {"gru": 3, "lstm": 4}.get(kind, 1) * HIDDEN

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32) / 2

    return LayerWeights(
        kind,
        drawn(WIDTH, gates),
        drawn(projection or HIDDEN, gates),
        drawn(gates),
        drawn(gates),
        drawn(HIDDEN, projection) if projection else None,
    )


def info(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes, inputs, outputs, initializers=(), opsets=()):
    graph = helper.make_graph(nodes, "traced", inputs, outputs, list(initializers))
    imports = [helper.make_opsetid("", 20), *(helper.make_opsetid(name, 1) for name in opsets)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run(made, feed):
    checker.check_model(made, full_check=True)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize(
    ("kind", "projection"), [("tanh", None), ("relu", None), ("gru", None), ("lstm", None), ("lstm", 2)]
)
def test_a_recurrent_node_becomes_its_equations_over_time(kind, projection):
    layer, out = layer_of(kind, projection), projection or HIDDEN
    states = ["h", "c"] if kind == "lstm" else ["h"]
    shapes = {"h": out, "c": HIDDEN}
    node = helper.make_node(
        "Recurrent", ["x", *states], ["y", *(f"{name}_next" for name in states)], domain="holdfast", key="l"
    )
    made = model(
        [node],
        [info("x", "time", "batch", WIDTH), *(info(name, "batch", shapes[name]) for name in states)],
        [info("y", "time", "batch", out)]
        + [info(f"{name}_next", "batch", shapes[name]) for name in states],
        opsets=["holdfast"],
    )
    expand(made, "holdfast", {"l": layer})
    rng = np.random.default_rng(1)
    x = rng.standard_normal((TIME, BATCH, WIDTH)).astype(np.float32)
    h, c = (rng.standard_normal((BATCH, size)).astype(np.float32) for size in (out, HIDDEN))
    given = run(made, {"x": x, "h": h} | ({"c": c} if kind == "lstm" else {}))
    every = []
    for token in x:
        h, c = step(layer, token, h, c)
        every.append(h)
    for found, expected in zip(given, [np.stack(every), h, c], strict=False):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_graph_of_one_token_becomes_one_of_many():
    """Also where a state is an output, goes through unchanged, or is named in a branch of an If."""
    zero = numpy_helper.from_array(np.float32(0), "zero")
    adding = {name: helper.make_node("Add", ["h", "x"], [f"{name}_sum"]) for name in ("then", "else")}
    branch = [
        helper.make_graph([node], name, [], [info(f"{name}_sum", "batch", 2)])
        for name, node in adding.items()
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["is_more"]),
        helper.make_node("If", ["is_more"], ["h_next"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Mul", ["h_next", "gain"], ["y"]),
        helper.make_node("Identity", ["kept"], ["kept_next"]),
    ]
    made = model(
        nodes,
        [info("x", "batch", 2), info("h", "batch", 2), info("kept", "batch", 1), info("gain", "batch", 2)],
        [info("y", "batch", 2), info("h_next", "batch", 2), info("kept_next", "batch", 1)],
        [zero],
    )
    whole = scan_over_time(made, ["x"], {"h": "h_next", "kept": "kept_next"}, ["y"])
    x = np.random.default_rng(2).standard_normal((TIME, BATCH, 2)).astype(np.float32)
    h, kept, gain = np.ones((BATCH, 2), np.float32), np.full((BATCH, 1), 3, np.float32), x[0]
    y, h_next, kept_next = run(whole, {"x": x, "h": h, "kept": kept, "gain": gain})
    sums = h + np.cumsum(x, axis=0)
    np.testing.assert_allclose(y, sums * gain, atol=1e-6)
    np.testing.assert_allclose(h_next, sums[-1], atol=1e-6)
    np.testing.assert_array_equal(kept_next, kept)
