"""The nets of the benchmark: what they are made of, and that both forms compute the same."""

import numpy as np
import pytest

from benchmarks.ceilings import bare
from benchmarks.fused import build_fused
from benchmarks.nets import SPECTRAL_RADIUS, Net, over, random_weights
from benchmarks.results import Round
from model_export.graph import build_graph
from tests.unit.test_graph import open_session

NETS = (Net("elman", 16), Net("gru", 16), Net("lstm", 16, 2))


@pytest.mark.parametrize("net", NETS)
def test_fused_operators_compute_what_ours_do(net):
    weights = random_weights(net)
    rng = np.random.default_rng(1)
    feed = {"token": rng.integers(0, 256, (6, 3))}
    feed |= {name: rng.uniform(-1, 1, (3, 16)).astype(np.float32) for name in weights.state_names}
    outputs = ["logits", *(f"{name}_next" for name in weights.state_names)]
    ours = open_session(build_graph(weights)).run(outputs, feed)
    fused = open_session(build_fused(weights)).run(outputs, feed)
    for left, right in zip(ours, fused, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_memory_of_random_nets_fades():
    recurrent = random_weights(Net("gru", 16)).layers[0].recurrent
    for gate in np.split(recurrent, 3, axis=1):
        assert np.abs(np.linalg.eigvals(gate)).max() == pytest.approx(SPECTRAL_RADIUS, abs=1e-5)


def test_onnxruntime_alone_runs_any_number_of_states():
    session = open_session(build_graph(random_weights(Net("lstm", 16, 2))))
    assert bare(session, 3, 2, 0.01).steps_per_s > 0


def test_a_ratio_is_one_of_medians():
    rounds = {"a": [Round(speed, 0, 0, 0) for speed in (1, 10, 100)], "b": [Round(5, 0, 0, 0)]}
    assert over({"net": rounds}, "net", "a", "b") == 2
