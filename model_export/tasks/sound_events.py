"""`sound-events`: 16 kHz samples in, after each 16 ms the probability that somebody speaks.

Windows with context: a token is 256 new samples, and the graph sees 64 of those before as well, which the
server keeps beside the state. A bank of 24 filters (pairs of windowed waves, a strided convolution), its
power in decibels and its normalisation are constants of the graph; the memory hears the rhythm.
"""

import time
from dataclasses import replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export import gate, picture
from model_export.data.sound import CONTEXT, FRAME, NOISES, SAMPLE_RATE, Scene, make_scene, windows
from model_export.parity import Parity
from model_export.progress import Progress
from model_export.recurrent import (
    Memoryless,
    Plan,
    Recurrent,
    fit,
    parameter_count,
    passes,
    run,
)
from model_export.step_nodes import Nodes
from model_export.tasks.task import Cell, Folders, Outcome, facts_in_toml, lay_down, lay_down_picture

NAME = "sound-events"
LABELS = ("noise", "speech")
HIDDEN, FILTERS = 64, 24
TAPS, STRIDE = 160, 32
FLOOR = 1e-7
"""Added to the power, that of an amplitude of 0.0003, before its logarithm."""

FRAMES_PER_SECOND = SAMPLE_RATE / FRAME

_PLAN = Plan(steps=1000, weight_decay=0.3, state_noise=0.1)
_TRAINING, _HELD_OUT = range(80), range(1000, 1024)
"""Seeds of the recordings."""

_SECONDS, _WINDOW = 30, 75


class FilterBank(nn.Module):
    """Log power of 24 bands from 100 to 7,000 Hz in the window, normalised; all numbers are fixed."""

    filters: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(_filters()))
        self.register_buffer("mean", torch.zeros(FILTERS))
        self.register_buffer("deviation", torch.ones(FILTERS))

    def forward(self, samples: Tensor) -> Tensor:
        """Returns (T, B, FILTERS) for windows (T, B, CONTEXT + FRAME)."""
        return (self.log_power(samples) - self.mean) / self.deviation

    def log_power(self, samples: Tensor) -> Tensor:
        """Returns the logarithm of the mean power in each band, (T, B, FILTERS)."""
        waves = nn.functional.conv1d(samples.flatten(0, 1)[:, None], self.filters, stride=STRIDE)
        power = waves.square().mean(dim=2)
        both = power[:, :FILTERS] + power[:, FILTERS:]
        return torch.log(both + FLOOR).reshape(*samples.shape[:2], FILTERS)

    def normalise(self, log_power: Tensor) -> None:
        """Takes mean and deviation from recordings, (T, B, FILTERS)."""
        self.mean = log_power.mean(dim=(0, 1))
        self.deviation = log_power.std(dim=(0, 1))


def train(folders: Folders, scale: float) -> Outcome:
    """See `task.Train`."""
    started_s = time.process_time()
    torch.manual_seed(_PLAN.seed)
    bank = FilterBank()
    training = _Recordings(bank, _TRAINING)
    bank.normalise(training.log_power)
    held_out = _Recordings(bank, _HELD_OUT)
    as_it_is = nn.Identity()
    network = Recurrent(as_it_is, FILTERS, HIDDEN, len(LABELS))
    baseline = Memoryless(as_it_is, FILTERS, 2 * HIDDEN, len(LABELS))
    plan = replace(_PLAN, steps=max(1, int(_PLAN.steps * scale)))
    for title, fitted in ((NAME, network), (f"{NAME}, memoryless", baseline)):
        features = (training.log_power - bank.mean) / bank.deviation
        with Progress(title, plan.steps, "nats") as progress:
            fit(fitted, passes(features, training.targets, _WINDOW, restart_rate=0.1), plan, progress)
    features = (held_out.log_power - bank.mean) / bank.deviation
    given = [probabilities(run(each, features)).numpy()[..., 1] for each in (network, baseline)]
    network.front = bank
    model = build(network)
    tokens = np.stack([windows(make_scene(9, seed).samples)[:500] for seed in range(2000, 2064)], axis=1)
    parity = gate.check(
        network, model.SerializeToString(), tokens, lambda logits: {"speech": probabilities(logits)}
    )
    facts = _facts(network, parity, plan)
    size = lay_down(folders, NAME, model, _contract(facts))
    lay_down_picture(folders, NAME, _picture(held_out, given))
    rows = tuple(
        (name, parameter_count(each), file_bytes, *_figures(values, held_out))
        for name, each, file_bytes, values in (
            ("gru", network, size, given[0]),
            ("memoryless", baseline, "", given[1]),
        )
    )
    return Outcome(
        NAME,
        "Speech among noises, 16 kHz; wrong frames at probability 0.5, overall and by noise",
        ("network", "parameters", "file, bytes", "frame error", *NOISES,
         "missed", "false", "onset noticed after, ms"),
        rows,
        {**facts, "cpu minutes": round((time.process_time() - started_s) / 60, 1)},
    )  # fmt: skip


def probabilities(logits: Tensor) -> Tensor:
    """Returns what the graph gives, (T, B, labels)."""
    return torch.softmax(logits, dim=-1)


def build(network: Recurrent) -> onnx.ModelProto:
    """Builds the step graph: windows (time, batch, 320) in, probabilities out."""
    nodes = Nodes()
    recurrent, head = network.weights()
    bank = network.front
    assert isinstance(bank, FilterBank)
    samples = nodes.input("samples", ["time", "batch", CONTEXT + FRAME])
    one_each = nodes.add(
        "Reshape", [samples, nodes.weight("one_each", [-1, 1, CONTEXT + FRAME])], "one_each_window"
    )
    filters = nodes.weight("filters", bank.filters.numpy())
    waves = nodes.add("Conv", [one_each, filters], "waves", strides=[STRIDE])
    squares = nodes.add("Mul", [waves, waves], "squares")
    power = nodes.add("ReduceMean", [squares, nodes.weight("position_axis", [2])], "power", keepdims=0)
    pairs = np.concatenate([np.eye(FILTERS), np.eye(FILTERS)])
    both = nodes.add("MatMul", [power, nodes.weight("pairs", pairs)], "both")
    raised = nodes.add("Add", [both, nodes.weight("floor", np.float32(FLOOR))], "raised")
    log_power = nodes.add("Log", [raised], "log_power")
    centred = nodes.add("Sub", [log_power, nodes.weight("mean", bank.mean.numpy())], "centred")
    scaled = nodes.add("Div", [centred, nodes.weight("deviation", bank.deviation.numpy())], "scaled")
    axes = nodes.add("Shape", [samples], "window_axes", start=0, end=2)
    shape = nodes.add("Concat", [axes, nodes.weight("width", [FILTERS])], "feature_axes", axis=0)
    features = nodes.add("Reshape", [scaled, shape], "features")
    logits = nodes.dense(nodes.gru(features, recurrent), head, "logits")
    nodes.add("Softmax", [logits], "speech", axis=2)
    nodes.output("speech", ["time", "batch", len(LABELS)])
    return nodes.model(NAME)


class _Recordings:
    """Recordings side by side: their filtered windows (frames, recordings, FILTERS) and their truth."""

    def __init__(self, bank: FilterBank, seeds: range) -> None:
        self.scenes = [make_scene(_SECONDS, seed) for seed in seeds]
        each = [bank.log_power(torch.from_numpy(windows(scene.samples))[:, None]) for scene in self.scenes]
        self.log_power = torch.cat(each, dim=1)
        speech = np.stack([scene.speech for scene in self.scenes], axis=1)
        self.targets = torch.from_numpy(speech).long()


def _filters() -> NDArray[np.float32]:
    """Returns cosine and sine waves below a Hann window, (2 * FILTERS, 1, TAPS), spaced as ears have it."""
    ears = np.linspace(np.log10(1 + 100 / 700), np.log10(1 + 7000 / 700), FILTERS)
    frequencies = 700 * (10**ears - 1)
    phase = 2 * np.pi * frequencies[:, np.newaxis] * np.arange(TAPS) / SAMPLE_RATE
    shape = np.hanning(TAPS + 2)[1:-1] / (TAPS / 4)
    waves = np.concatenate([np.cos(phase), np.sin(phase)]) * shape
    return waves[:, np.newaxis].astype(np.float32)


def _figures(speech: NDArray[np.float32], recordings: _Recordings) -> tuple[Cell, ...]:
    truth, said = recordings.targets.numpy() == 1, speech >= 0.5
    wrong = said != truth
    seconds = (np.arange(len(truth)) / FRAMES_PER_SECOND).astype(int)
    noise = np.stack([np.array(scene.noises)[seconds] for scene in recordings.scenes], axis=1)
    by_noise = [wrong[noise == name].mean() for name in NOISES]
    shares = (wrong.mean(), *by_noise, (~said)[truth].mean(), said[~truth].mean())
    return (*(round(float(share), 3) for share in shares), round(_onset_ms(said, truth)))


def _onset_ms(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Returns the median time from the beginning of an utterance to the end of the frame that notices it.

    Utterances that begin while a false alarm goes on are left out.
    """
    delays = []
    for column in range(truth.shape[1]):
        begins = np.flatnonzero(truth[1:, column] & ~truth[:-1, column]) + 1
        for begin in begins[~said[begins - 1, column]]:
            found = np.flatnonzero(said[begin:, column])
            delays.append((found[0] + 1) / FRAMES_PER_SECOND * 1000 if len(found) else np.inf)
    return float(np.median(delays))


def _facts(network: Recurrent, parity: Parity, plan: Plan) -> dict[str, Cell]:
    minutes = {name: len(seeds) * _SECONDS // 60 for name, seeds in (("t", _TRAINING), ("h", _HELD_OUT))}
    return {
        "threshold": "0.5",
        "data": f"made by model_export/data/sound.py, {minutes['t']} minutes, seeds from {_TRAINING[0]}",
        "held out": f"{minutes['h']} minutes, seeds from {_HELD_OUT[0]}",
        "network": f"{FILTERS} filters, gru, {HIDDEN} units, {parameter_count(network):,} parameters",
        "updates": plan.steps,
        "seed": plan.seed,
        "parity": f"{parity.max_difference:.1e} over {parity.steps} steps",
    }


def _contract(facts: dict[str, Cell]) -> str:
    labels = ", ".join(f'"{label}"' for label in LABELS)
    return f"""\
contract_version = 1
description = "Does somebody speak? One token is {FRAME} samples, 16 ms at {SAMPLE_RATE} Hz."

[input]
name = "samples"
axes = ["time", "batch", {CONTEXT + FRAME}]
kind = "features"
token = {FRAME}
context = {CONTEXT}
units = "-1 to 1"
description = "sound, one channel, {SAMPLE_RATE} samples per second"

[[state]]
input = "h"
output = "h_next"
axes = [1, "batch", {HIDDEN}]

[[output]]
name = "speech"
axes = ["time", "batch", {len(LABELS)}]
role = "probs"
labels = [{labels}]
description = "probability of each; speech from {facts["threshold"]}"

{facts_in_toml(facts)}"""


def _picture(recordings: _Recordings, given: list[NDArray[np.float32]], seconds: int = 20) -> str:
    """Draws a recording: its envelope, truth and what both networks say."""
    column = _liveliest(recordings.scenes)
    scene: Scene = recordings.scenes[column]
    count = int(seconds * FRAMES_PER_SECOND)
    peaks = np.abs(scene.samples.reshape(-1, FRAME)).max(axis=1)[:count]
    lanes = [
        picture.Lane(
            "sound",
            "peak of 16 ms",
            [picture.Curve(peaks.tolist(), picture.SIGNAL)],
            0.0,
            float(peaks.max()),
        )
    ]
    for name, values, colour in (
        ("with memory", given[0], picture.OURS),
        ("without", given[1], picture.BASELINE),
    ):
        curve = picture.Curve(values[:count, column].tolist(), colour)
        lanes.append(picture.Lane(name, "speech, 0 to 1", [curve], 0.0, 1.0, 60, 0.5))
    edges = np.flatnonzero(np.diff(scene.speech[:count].astype(int), prepend=0, append=0))
    spans = [
        picture.Span(begin / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND, "speech", picture.SHADES[0])
        for begin, end in edges.reshape(-1, 2)
    ]
    noises = ", ".join(dict.fromkeys(scene.noises[:seconds]))
    title = f"{NAME}: is somebody speaking? Noises: {noises}"
    return picture.draw(title, lanes, spans, end=seconds, unit="seconds")


def _liveliest(scenes: list[Scene]) -> int:
    """Returns the recording with the most kinds of noise, music among them."""
    return max(
        range(len(scenes)),
        key=lambda index: ("music" in scenes[index].noises[:20], len(set(scenes[index].noises[:20]))),
    )
