"""The recurrent layer of step graphs built from nodes, against its equations in numpy."""

import numpy as np
import onnxruntime as ort

from model_export.step_nodes import Dense, GruWeights, Nodes

WIDTH, HIDDEN, CLASSES = 3, 5, 2


def weights(rng):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) * 0.5  # noqa: E731
    gru = GruWeights(draw(1, 3 * HIDDEN, WIDTH), draw(1, 3 * HIDDEN, HIDDEN), draw(1, 6 * HIDDEN))
    return gru, Dense(draw(HIDDEN, CLASSES), draw(CLASSES))


def graph(gru, head):
    nodes = Nodes()
    values = nodes.input("values", ["time", "batch", WIDTH])
    nodes.dense(nodes.gru(values, gru), head, "answer")
    nodes.output("answer", ["time", "batch", CLASSES])
    return nodes.model("test").SerializeToString()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(gru, head, values, h):
    """h_t = (1 - z) * n + z * h, n = tanh(W x + r * (R h + c) + b)."""
    w, r, b = gru.inputs[0], gru.recurrent[0], gru.bias[0]
    answers = []
    for x in values.astype(np.float64):
        inner, outer = x @ w.T + b[: 3 * HIDDEN], h @ r.T + b[3 * HIDDEN :]
        inner_update, inner_reset, inner_new = np.split(inner, 3, axis=1)
        outer_update, outer_reset, outer_new = np.split(outer, 3, axis=1)
        update, reset = sigmoid(inner_update + outer_update), sigmoid(inner_reset + outer_reset)
        new = np.tanh(inner_new + reset * outer_new)
        h = (1 - update) * new + update * h
        answers.append(h @ head.weight + head.bias)
    return np.stack(answers), h


def test_the_graph_computes_the_equations_whatever_the_chunks():
    rng = np.random.default_rng(0)
    gru, head = weights(rng)
    session = ort.InferenceSession(graph(gru, head), providers=["CPUExecutionProvider"])
    values, h = rng.standard_normal((9, 4, WIDTH)).astype(np.float32), rng.standard_normal((1, 4, HIDDEN))
    expected, last = reference(gru, head, values, h[0])
    for chunk in (1, 2, 9):
        state, answers = h.astype(np.float32), []
        for start in range(0, len(values), chunk):
            answer, state = session.run(None, {"values": values[start : start + chunk], "h": state})
            answers.append(answer)
        np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-5)
        np.testing.assert_allclose(state[0], last, atol=1e-5)
