import numpy as np
import pytest

from service.engine.cache import join_rows, split_rows
from service.model.arrangement import Arrangement
from service.model.check import check_model
from service.model.contract import Layout
from service.model.step_graph import StepGraph
from tests.support.foreign_graphs import NETWORKS

TOKENS, ROWS = 9, 3


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_a_graph_of_another_form_gives_every_row_what_it_computes(network, chunk, tmp_path):
    graph = StepGraph(tmp_path, name="net", version=1, data=network.bundle())
    contract = graph.contract
    tokens = np.stack([network.tokens(TOKENS, row) for row in range(ROWS)], axis=1)
    raw = bytearray(contract.initial_state)
    rows = np.frombuffer(bytes(raw) * ROWS, np.uint8).reshape(ROWS, -1)
    states = split_rows(contract, rows)
    for name, value in network.opening.items():
        states[name] = np.stack([value] * ROWS)
    parts = []
    for start in range(0, TOKENS, chunk):
        outputs, states = graph.run(tokens[start : start + chunk].astype(contract.input.dtype), states)
        states = split_rows(contract, join_rows(contract, states))  # as a record keeps it
        parts.append(outputs)
    for row in range(ROWS):
        expected, state = network.expected(tokens[:, row], network.opening)
        for output in contract.outputs:
            if output.is_last:
                found = parts[-1][output.name][:, row]
                wanted = expected[output.name][-1:]
            else:
                found = np.concatenate([part[output.name][:, row] for part in parts])
                wanted = expected[output.name]
            assert found.dtype == output.dtype
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
        for name, value in state.items():
            np.testing.assert_allclose(states[name][row], value, rtol=1e-5, atol=1e-5)


@pytest.mark.process
@pytest.mark.parametrize("name", ["rank 4", "window", "input of the session", "id and features", "int8"])
def test_the_check_lets_it_pass(name, tmp_path):
    check_model(tmp_path, NETWORKS[name].bundle())


def test_a_tensor_without_axes_is_an_array():
    axes = Arrangement(Layout(None, None), 0)
    given = axes.to_graph(np.ones((1, 1), np.float32))
    assert (type(given), given.shape) == (np.ndarray, ())  # onnxruntime takes no numbers of numpy
    assert axes.from_graph(np.float32(2)).tolist() == [[2]]
