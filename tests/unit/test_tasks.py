"""Networks of other shapes, from torch to their step graphs."""

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from model_export import gate  # noqa: E402
from model_export.parity import ParityError  # noqa: E402
from model_export.progress import Progress  # noqa: E402
from model_export.recurrent import Memoryless, Plan, Recurrent, fit, passes, run  # noqa: E402
from model_export.tasks import code_language, sensor_anomaly, sound_events  # noqa: E402


def sensor():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, (500, 64, 6)).astype(np.float32)
    network = Recurrent(sensor_anomaly.Normalise(values), 12, 8, 7).eval()
    return network, sensor_anomaly.build(network), values, sensor_anomaly.outputs_of, ()


def language():
    tokens = np.random.default_rng(0).integers(0, 256, (500, 64))
    network = Recurrent(code_language.Embedding(), 32, 8, 8).eval()
    return network, code_language.build(network), tokens, lambda y: {"language": y}, ("language",)


def sound():
    tokens = np.random.default_rng(0).normal(0, 0.1, (500, 64, 320)).astype(np.float32)
    network = Recurrent(sound_events.FilterBank(), 24, 8, 2).eval()
    return (
        network, sound_events.build(network), tokens,
        lambda y: {"speech": sound_events.probabilities(y)}, (),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    monkeypatch.setattr(gate, "BATCHES", (1, 3))
    monkeypatch.setattr(gate, "STEPS", 65)


@pytest.mark.parametrize("make", [sensor, language, sound])
def test_a_graph_passes_the_gate_and_one_of_other_weights_does_not(make):
    network, model, tokens, outputs, last = make()
    parity = gate.check(network, model.SerializeToString(), tokens, outputs, of_last_token=last)
    assert parity.max_difference <= 1e-5
    with torch.no_grad():
        network.gru.weight_hh_l0[0, 0] += 0.1
    with pytest.raises(ParityError, match="largest difference in 65 steps"):
        gate.check(network, model.SerializeToString(), tokens, outputs, of_last_token=last)


def test_the_bands_of_the_filters_answer_to_their_frequency():
    bank = sound_events.FilterBank()
    time = np.arange(320) / 16_000
    loudest = []
    for hertz in (150.0, 600.0, 2000.0, 6000.0):
        tone = torch.from_numpy(np.sin(2 * np.pi * hertz * time).astype(np.float32))[None, None]
        loudest.append(int(bank(tone).argmax()))
    assert loudest == sorted(set(loudest))


def test_memory_learns_what_a_network_without_cannot():
    """The class is the token before this one."""
    tokens = torch.randint(0, 2, (100, 16))
    targets = torch.cat([torch.zeros(1, 16, dtype=torch.long), tokens[:-1]])
    one_hot = torch.nn.functional.one_hot(tokens, 2).float()
    right = []
    for network in (Recurrent(torch.nn.Identity(), 2, 8, 2), Memoryless(torch.nn.Identity(), 2, 8, 2)):
        plan = Plan(steps=50, peak_rate=3e-2, part=5)
        fit(network, passes(one_hot, targets, 10, 0.1), plan, Progress("", plan.steps, "nats"))
        right.append(float((run(network, one_hot).argmax(2) == targets).float().mean()))
    assert right[0] > 0.95
    assert right[1] < 0.65


def test_passes_start_anew_where_a_recording_does():
    tokens = torch.arange(10)[:, None]
    drawn = passes(tokens, tokens, 4, restart_rate=0.0)
    starts = [
        (int(window.tokens[0, 0]), bool(window.fresh[0]))
        for window, _ in zip(drawn, range(4), strict=False)
    ]
    assert starts == [(0, True), (4, False), (0, True), (4, False)]


def test_the_graph_over_bytes_answers_once_a_run():
    _, model, tokens, _, _ = language()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, h = session.run(None, {"token": tokens[:5, :3], "h": np.zeros((1, 3, 8), np.float32)})
    assert [logits.shape, h.shape] == [(3, 8), (1, 3, 8)]
