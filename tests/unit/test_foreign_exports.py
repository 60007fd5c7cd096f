"""Networks of PyTorch and Keras as whole sequences, streamed; skipped where they are not installed."""

import numpy as np
import pytest

from model_export.from_file import load
from model_export.from_sequence import Refused, to_step_graph
from tests.support.sequence_graphs import stream

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
