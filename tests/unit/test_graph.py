"""Step graphs built from plain weights, against the equations in numpy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from model_export.contract import SWITCH, byte_network_contract
from model_export.graph import GATES, Layer, Weights, build_graph
from service.model.step_graph import StepGraph

HIDDEN, TIME, BATCH = 8, 5, 3


def random_weights(kind, layers):
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    width = len(GATES[kind]) * HIDDEN
    made = [
        Layer(draw(256 if number == 0 else HIDDEN, width), draw(HIDDEN, width), draw(width))
        for number in range(layers)
    ]
    return Weights(kind, made, draw(HIDDEN, 256), draw(256))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def advance(kind, gates, layer, states):
    """One step of a cell, as `networks` spells it out."""
    h = states[0]
    inner = h @ layer.recurrent + layer.bias
    if kind == "elman":
        return [np.tanh(gates + inner)]
    if kind == "gru":
        (r, z, n), (inner_r, inner_z, inner_n) = np.split(gates, 3, axis=1), np.split(inner, 3, axis=1)
        new = np.tanh(n + sigmoid(r + inner_r) * inner_n)
        return [new + sigmoid(z + inner_z) * (h - new)]
    i, f, o, g = np.split(gates + inner, 4, axis=1)
    c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def run_equations(weights, tokens, states):
    """Returns logits, token_log_prob and the last states, as the graph gives them."""
    per_layer = len(states) // len(weights.layers)
    all_logits, log_probs = [], []
    for row in tokens:
        before = states[-per_layer] @ weights.readout + weights.readout_bias
        log_probs.append(before[np.arange(BATCH), row] - np.log(np.exp(before).sum(axis=1)))
        below, after = np.eye(256)[row], []
        for number, layer in enumerate(weights.layers):
            mine = states[number * per_layer : (number + 1) * per_layer]
            after += advance(weights.kind, below @ layer.inputs, layer, mine)
            below = after[-per_layer]
        states = after
        all_logits.append(below @ weights.readout + weights.readout_bias)
    return [np.stack(all_logits), np.stack(log_probs), *states]


def open_session(graph):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feed_of(weights):
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, 256, (TIME, BATCH))
    states = [rng.uniform(-1, 1, (BATCH, HIDDEN)).astype(np.float32) for _ in weights.state_names]
    return tokens, states, {"token": tokens, **dict(zip(weights.state_names, states, strict=True))}


@pytest.mark.parametrize(
    ("kind", "layers"), [("elman", 1), ("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2)]
)
def test_the_graph_computes_the_equations(kind, layers):
    weights = random_weights(kind, layers)
    tokens, states, feed = feed_of(weights)
    given = open_session(build_graph(weights)).run(None, feed)
    for left, right in zip(given, run_equations(weights, tokens, states), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_token_log_prob_can_be_switched_off():
    weights = random_weights("gru", 1)
    _, _, feed = feed_of(weights)
    session = open_session(build_graph(weights))
    logits, log_probs, h = session.run(None, feed)
    same_logits, zeros, same_h = session.run(None, {**feed, SWITCH: np.array(False)})
    assert (same_logits == logits).all()
    assert (same_h == h).all()
    assert log_probs.any()
    assert not zeros.any()


def test_a_server_takes_a_graph_of_two_layers(tmp_path):
    weights = random_weights("lstm", 2)
    graph = build_graph(weights)
    onnx.helper.set_model_props(
        graph, byte_network_contract(HIDDEN, weights.state_names, training={}, parity={})
    )
    onnx.checker.check_model(graph, full_check=True)
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    assert StepGraph(path, name="net", version=1).contract.state_bytes == 4 * 4 * HIDDEN
