"""The models that ship: small, what their contract says, and ordered by what memory is worth."""

import json
import math
import operator
import tomllib

import numpy as np
import pytest

from model_export.corpus import join, load_corpus
from service.model.check import check_model
from service.model.files import fingerprint_of, read_model
from service.model.repository import ModelRepository
from service.model.shipped import FINGERPRINTS
from service.settings.schema import Settings

NAMES = ("python-source", "python-source-elman", "python-source-feedforward")
"""Over text, best first."""

OTHERS = ("code-language", "sensor-anomaly", "sound-events")
"""Of other shapes; tests/rpc/test_shapes.py compares what they give."""


@pytest.fixture(scope="module")
def repository():
    return ModelRepository(Settings().models)


def log_probs(model, data):
    states = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in model.contract.states}
    for byte in data:
        outputs, states = model.run(np.array([[byte]]), states)
        yield outputs["token_log_prob"][0, 0], outputs["logits"][0, 0]


def test_the_shipped_models_are_served(repository):
    assert sorted(model.name for model in repository) == sorted((*NAMES, *OTHERS, "docstring-words"))


def test_they_are_small():
    for name in NAMES:
        assert (Settings().models / name / "1" / "model.onnx").stat().st_size <= 3_000_000
    for name in OTHERS:
        assert (Settings().models / name / "1" / "model.onnx").stat().st_size <= 400_000


@pytest.mark.parametrize("name", OTHERS)
def test_what_they_are_worth_is_on_record(name):
    """Each is measured beside a network without memory, and better at what it is for."""
    tasks = json.loads((Settings().models / "training.json").read_text())["tasks"]
    rows = {row["network"]: row for row in tasks[name]["rows"]}
    figure, better = {
        "code-language": ("256 bytes", operator.gt),
        "sensor-anomaly": ("average precision", operator.gt),
        "sound-events": ("frame error", operator.lt),
    }[name]
    assert better(rows["gru"][figure], rows["memoryless"][figure])
    size = (Settings().models / name / "1" / "model.onnx").stat().st_size
    assert rows["gru"]["file, bytes"] == size, "the figures are of another file"


@pytest.mark.parametrize("name", OTHERS)
def test_they_say_what_they_are(repository, name):
    contract = repository.find(name).contract
    labels = [output.labels for output in contract.outputs if output.labels]
    assert labels
    assert len(set(labels[0])) == len(labels[0])
    page = tomllib.loads((Settings().models / name / "1" / "contract.toml").read_text())
    assert page["description"].endswith(".")
    assert {"data", "network", "parity", "seed"} <= page["facts"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_token_log_prob_is_the_readout_of_the_state_before(repository, name):
    data = b"def f(x):\n    return x\n"
    steps = list(log_probs(repository.find(name), data))
    for (log_prob, _), (_, before), byte in zip(steps[1:], steps, data[1:], strict=False):
        expected = before[byte] - math.log(np.exp(before.astype(np.float64)).sum())
        assert log_prob == pytest.approx(expected, abs=1e-4)


def test_memory_pays(repository):
    text = join(load_corpus().held_out)[50_000:54_000]
    bits = [
        -np.mean([log_prob for log_prob, _ in log_probs(repository.find(name), text)]) / math.log(2)
        for name in NAMES
    ]
    assert bits == sorted(bits)


def test_batched_equals_alone(repository):
    model = repository.find("python-source")
    rng = np.random.default_rng(0)
    tokens, states = rng.integers(0, 256, (1, 33)), rng.uniform(-1, 1, (33, 256)).astype(np.float32)
    together, _ = model.run(tokens, {"h": states})
    for row in range(33):
        alone, _ = model.run(tokens[:, row : row + 1], {"h": states[row : row + 1]})
        np.testing.assert_allclose(together["logits"][:, row], alone["logits"][:, 0], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_many_steps_in_one_call_equal_single_steps(repository, name):
    model = repository.find(name)
    text = np.frombuffer(join(load_corpus().held_out)[50_000:50_512], np.uint8).astype(np.int64)
    tokens = text.reshape(8, 64).T
    first = {"h": np.zeros((8, 256), np.float32)}
    together, last = model.run(tokens, first)
    states = first
    for index, row in enumerate(tokens):
        single, states = model.run(row[np.newaxis], states)
        for output, values in single.items():
            np.testing.assert_allclose(together[output][index], values[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(last["h"], states["h"], atol=1e-5)


@pytest.mark.process
def test_those_that_start_unchecked_are_these_and_pass_the_check():
    files = sorted(Settings().models.glob("*/*/model.onnx"))
    models = {path: read_model(path) for path in files}
    assert {fingerprint_of(data) for data in models.values()} == FINGERPRINTS
    for path, data in models.items():
        check_model(path, data)
