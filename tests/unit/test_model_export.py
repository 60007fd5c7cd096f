"""Training and export; run where torch is installed (`make train` installs it)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from model_export.export import export, weights_of  # noqa: E402
from model_export.graph import build_graph  # noqa: E402
from model_export.networks import NETWORKS, Elman, Gru, Lstm  # noqa: E402
from model_export.parity import ParityError, check_parity  # noqa: E402
from model_export.train import Recipe, train  # noqa: E402

TEXT = bytes(range(256)) * 30


class Losses(list):
    def advance(self, bits):
        self.append(bits)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_step_graph_computes_what_the_network_computes(kind, tmp_path):
    torch.manual_seed(1)
    network = NETWORKS[kind](32).eval()
    parity = export(network, tmp_path / "1" / "model.onnx", training={}, text=TEXT)
    assert parity.max_difference <= 1e-5
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["model.onnx"]


def test_the_gate_stops_a_tampered_graph():
    network = Elman(16).eval()
    graph = build_graph(weights_of(network))
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "recurrent_h")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "recurrent_h"))
    with pytest.raises(ParityError):
        check_parity(network, graph.SerializeToString(), TEXT)


def test_elman_is_the_equation():
    network = Elman(8).eval()
    token, h = torch.tensor([3]), torch.randn(1, 8)
    with torch.no_grad():
        logits, _, next_h = network(token, h)
    w_hh, b = network.recurrent.weight.detach().numpy(), network.recurrent.bias.detach().numpy()
    expected = np.tanh(network.table.detach().numpy()[3] + w_hh @ h.numpy()[0] + b)
    np.testing.assert_allclose(next_h.numpy()[0], expected, atol=1e-6)
    readout = network.readout.weight.detach().numpy() @ expected + network.readout.bias.detach().numpy()
    np.testing.assert_allclose(logits.numpy()[0], readout, atol=1e-5)


def test_gru_is_that_of_torch():
    ours, theirs = Gru(8), torch.nn.GRUCell(256, 8)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.table.T)
        theirs.bias_ih.zero_()
        theirs.weight_hh.copy_(ours.recurrent.weight)
        theirs.bias_hh.copy_(ours.recurrent.bias)
        h = torch.randn(4, 8)
        token = torch.tensor([1, 2, 3, 4])
        expected = theirs(torch.nn.functional.one_hot(token, 256).float(), h)
        torch.testing.assert_close(ours(token, h)[2], expected, atol=1e-6, rtol=0)


def test_lstm_keeps_two_states():
    h, c = Lstm(8).initial(3)
    logits, log_prob, next_h, next_c = Lstm(8)(torch.tensor([0, 1, 2]), h, c)
    assert [tuple(part.shape) for part in (logits, log_prob, next_h, next_c)] == [
        (3, 256), (3,), (3, 8), (3, 8)
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_losses():
    runs = [Losses(), Losses()]
    for losses in runs:
        train(Recipe("gru", hidden=16, steps=4, batch=4, window=8), TEXT, losses)
    assert runs[0] == runs[1]
