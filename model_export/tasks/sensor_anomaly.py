"""`sensor-anomaly`: six sensors of a machine in, how likely one of them is wrong and in which way out.

Many features in, many classes out. The readings come as they are; their normalisation is part of the
graph. It is trained on machines that never existed (`data.machine`) to name the fault of the moment; the
score is the probability that there is one, whichever.
"""

import time
from dataclasses import replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export import gate, picture
from model_export.data.machine import (
    CHANNELS,
    KINDS,
    READINGS_PER_DAY,
    UNITS,
    Event,
    Readings,
    make_readings,
)
from model_export.parity import Parity
from model_export.progress import Progress
from model_export.recurrent import (
    Memoryless,
    Network,
    Plan,
    Recurrent,
    fit,
    parameter_count,
    passes,
    run,
)
from model_export.step_nodes import Nodes
from model_export.tasks.task import Cell, Folders, Outcome, facts_in_toml, lay_down, lay_down_picture

NAME = "sensor-anomaly"
HIDDEN, FEATURES = 64, 2 * len(CHANNELS)
BASELINE_HIDDEN = 112
"""As many parameters as the network with memory."""
FALSE_ALARMS_PER_DAY = 1.0
"""What both networks are allowed on one machine; their thresholds keep to it."""

LIMIT = 10.0
"""Deviations from the mean beyond which a reading is cut off, so that no wild one fills the memory."""

_PLAN = Plan(steps=2000, peak_rate=5e-3, weight_decay=0.1, state_noise=0.05)
_TRAINING, _TUNING, _HELD_OUT = (12_000, 64, 1), (8_640, 16, 2), (8_640, 32, 3)
"""Readings, machines and seed; the threshold is chosen on `_TUNING`, every figure is of `_HELD_OUT`."""

_WINDOW = 120
_GRACE = 20
"""Readings after a fault in which an alarm still counts as its echo and not as false."""


class Normalise(nn.Module):
    """(x - mean) M, cut off at LIMIT; the numbers are fixed.

    M gives every channel in its deviations, and then what the channels are apart from one another: their
    principal components, each in its own deviations. So a reading that fits the others badly is far from
    zero, however little it moved.

    It is computed in float64, here and in the graph: what is left where readings cancel out is small, and
    the order of a sum in float32 would show in the scores.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, values: NDArray[np.float32]) -> None:
        super().__init__()
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        deviations = flat.std(axis=0)
        sizes, directions = np.linalg.eigh(np.corrcoef(flat.T))
        matrix = np.concatenate([np.eye(len(sizes)), directions / np.sqrt(sizes)], axis=1)
        self.register_buffer("mean", torch.from_numpy(flat.mean(axis=0)))
        self.register_buffer("matrix", torch.from_numpy(matrix / deviations[:, np.newaxis]))

    def forward(self, values: Tensor) -> Tensor:
        """Returns (T, B, 2 * channels) for readings (T, B, channels)."""
        scaled = (values.double() - self.mean) @ self.matrix
        return scaled.clamp(-LIMIT, LIMIT).to(values.dtype)


def train(folders: Folders, scale: float) -> Outcome:
    """See `task.Train`."""
    started_s = time.process_time()
    torch.manual_seed(_PLAN.seed)
    readings = make_readings(*_TRAINING)
    front = Normalise(readings.values)
    network = Recurrent(front, FEATURES, HIDDEN, len(KINDS))
    baseline = Memoryless(front, FEATURES, BASELINE_HIDDEN, len(KINDS))
    plan = replace(_PLAN, steps=max(1, int(_PLAN.steps * scale)))
    for title, fitted in ((NAME, network), (f"{NAME}, memoryless", baseline)):
        tokens, targets = torch.from_numpy(readings.values), torch.from_numpy(readings.kinds).long()
        with Progress(title, plan.steps, "nats") as progress:
            fit(fitted, passes(tokens, targets, _WINDOW, restart_rate=0.05), plan, progress)
    tuning, held_out = make_readings(*_TUNING), make_readings(*_HELD_OUT)
    thresholds = [_threshold(_scores(each, tuning), tuning) for each in (network, baseline)]
    scores = [_scores(each, held_out) for each in (network, baseline)]
    model = build(network)
    parity = gate.check(network, model.SerializeToString(), make_readings(500, 64, 4).values, outputs_of)
    facts = _facts(network, thresholds[0], parity, plan)
    size = lay_down(folders, NAME, model, _contract(facts))
    lay_down_picture(folders, NAME, _picture(held_out, scores, thresholds))
    rows = tuple(
        (name, parameter_count(each), file_bytes, *_figures(score, threshold, held_out))
        for name, each, file_bytes, score, threshold in (
            ("gru", network, size, scores[0], thresholds[0]),
            ("memoryless", baseline, "", scores[1], thresholds[1]),
        )
    )
    return Outcome(
        NAME,
        "Six sensors of a machine, at one false alarm a day; share of the faults that are found, by kind",
        ("network", "parameters", "file, bytes", "precision", "recall", "average precision",
         "false alarms per day", "all faults", *KINDS[1:]),
        rows,
        {**facts, "cpu minutes": round((time.process_time() - started_s) / 60, 1)},
    )  # fmt: skip


def outputs_of(logits: Tensor) -> dict[str, Tensor]:
    """Returns what the graph gives: the score (T, B) and the kinds' logits (T, B, kinds)."""
    return {"score": 1 - torch.softmax(logits, dim=-1)[..., 0], "kind": logits}


def build(network: Recurrent) -> onnx.ModelProto:
    """Builds the step graph: readings (time, batch, 6) in, score and kind out."""
    nodes = Nodes()
    recurrent, head = network.weights()
    front = network.front
    assert isinstance(front, Normalise)
    readings = nodes.input("readings", ["time", "batch", len(CHANNELS)])
    precise = nodes.add("Cast", [readings], "precise", to=onnx.TensorProto.DOUBLE)
    mean, matrix, lowest, highest = (
        nodes.weight(name, values, is_double=True)
        for name, values in (
            ("mean", front.mean.numpy()),
            ("matrix", front.matrix.numpy()),
            ("lowest", -LIMIT),
            ("highest", LIMIT),
        )
    )
    centred = nodes.add("Sub", [precise, mean], "centred")
    scaled = nodes.add("MatMul", [centred, matrix], "scaled")
    clipped = nodes.add("Clip", [scaled, lowest, highest], "clipped")
    features = nodes.add("Cast", [clipped], "features", to=onnx.TensorProto.FLOAT)
    kind = nodes.dense(nodes.gru(features, recurrent), head, "kind")
    probabilities = nodes.add("Softmax", [kind], "probabilities", axis=2)
    normal = nodes.add("Gather", [probabilities, nodes.weight("normal_index", 0)], "normal", axis=2)
    nodes.add("Sub", [nodes.weight("one", np.float32(1.0)), normal], "score")
    nodes.output("score", ["time", "batch"])
    nodes.output("kind", ["time", "batch", len(KINDS)])
    return nodes.model(NAME)


def _scores(network: Network, readings: Readings) -> NDArray[np.float32]:
    """Returns (readings, machines)."""
    return outputs_of(run(network, torch.from_numpy(readings.values)))["score"].numpy()


def _threshold(scores: NDArray[np.float32], readings: Readings) -> float:
    """Returns the last threshold, from the highest down, that gives no more false alarms than are borne.

    Not the lowest of all: where the alarm never ends, it begins but once.
    """
    threshold = 0.99
    for hundredths in range(99, 4, -1):
        if _false_alarms_per_day(scores >= hundredths / 100, readings) > FALSE_ALARMS_PER_DAY:
            break
        threshold = hundredths / 100
    return threshold


def _precision_recall(alarm: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> tuple[float, float]:
    hits = float((alarm & wrong).sum())
    return hits / max(1, int(alarm.sum())), hits / max(1, int(wrong.sum()))


def _average_precision(scores: NDArray[np.float32], wrong: NDArray[np.bool_]) -> float:
    """Returns the area below precision over recall."""
    hits = wrong.ravel()[np.argsort(-scores.ravel(), kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def _figures(scores: NDArray[np.float32], threshold: float, readings: Readings) -> tuple[Cell, ...]:
    wrong, alarm = readings.kinds > 0, scores >= threshold
    precision, recall = _precision_recall(alarm, wrong)
    found = [_is_found(alarm, event) for event in readings.events]
    hits: dict[int, list[bool]] = {kind: [] for kind in range(1, len(KINDS))}
    for event, is_found in zip(readings.events, found, strict=True):
        hits[event.kind].append(is_found)
    by_kind = [float(np.mean(of_kind)) for of_kind in hits.values()]
    figures = (
        precision, recall, _average_precision(scores, wrong), _false_alarms_per_day(alarm, readings),
        float(np.mean(found)), *by_kind,
    )  # fmt: skip
    return tuple(round(figure, 3) for figure in figures)


def _is_found(alarm: NDArray[np.bool_], event: Event) -> bool:
    return bool(alarm[event.start : event.stop, event.machine].any())


def _false_alarms_per_day(alarm: NDArray[np.bool_], readings: Readings) -> float:
    """Counts runs of alarm that begin outside of every fault and its echo, per machine and day."""
    around = readings.kinds > 0
    for event in readings.events:
        around[event.stop : event.stop + _GRACE, event.machine] = True
    begins = alarm.copy()
    begins[1:] &= ~alarm[:-1]
    return float((begins & ~around).sum()) / (alarm.size / READINGS_PER_DAY)


def _facts(network: Recurrent, threshold: float, parity: Parity, plan: Plan) -> dict[str, Cell]:
    return {
        "threshold": f"{threshold:.2f}",
        "threshold is": "the lowest with at most one false alarm per machine and day on other data",
        "data": "made by model_export/data/machine.py, "
        f"{_TRAINING[1]} machines of {_TRAINING[0]} readings, seed {_TRAINING[2]}",
        "held out": f"{_HELD_OUT[1]} other machines for {_HELD_OUT[0] // READINGS_PER_DAY} days",
        "network": f"gru, {HIDDEN} units, {parameter_count(network):,} parameters",
        "updates": plan.steps,
        "seed": plan.seed,
        "parity": f"{parity.max_difference:.1e} over {parity.steps} steps",
    }


def _contract(facts: dict[str, Cell]) -> str:
    channels = ", ".join(f"{name} ({unit})" for name, unit in zip(CHANNELS, UNITS, strict=True))
    labels = ", ".join(f'"{kind}"' for kind in KINDS)
    return f"""\
contract_version = 1
description = "Is one of a machine's six sensors wrong, and how? One token is one reading, every 30 s."

[input]
name = "readings"
axes = ["time", "batch", {len(CHANNELS)}]
kind = "features"
description = "{channels}"

[[state]]
input = "h"
output = "h_next"
axes = [1, "batch", {HIDDEN}]

[[output]]
name = "score"
axes = ["time", "batch"]
role = "score"
description = "probability that a sensor is wrong; alarm at {facts["threshold"]}"

[[output]]
name = "kind"
axes = ["time", "batch", {len(KINDS)}]
role = "logits"
labels = [{labels}]
description = "which fault it is"

{facts_in_toml(facts)}"""


def _picture(
    readings: Readings, scores: list[NDArray[np.float32]], thresholds: list[float], count: int = 1400
) -> str:
    """Draws the machine and time with the most kinds of fault."""

    def variety(place: tuple[int, int]) -> int:
        start, machine = place
        return len(set(readings.kinds[start : start + count, machine].tolist()))

    places = [
        (start, machine)
        for machine in range(readings.kinds.shape[1])
        for start in range(0, len(readings.kinds) - count, count // 4)
    ]
    start, machine = max(places, key=variety)
    part = slice(start, start + count)
    lanes = []
    for index, (name, unit) in enumerate(zip(CHANNELS, UNITS, strict=True)):
        values = readings.values[part, machine, index]
        curve = picture.Curve(values.tolist(), picture.SIGNAL)
        lanes.append(picture.Lane(name, unit, [curve], float(values.min()), float(values.max())))
    for name, score, threshold, colour in (
        ("with memory", scores[0], thresholds[0], picture.OURS),
        ("without", scores[1], thresholds[1], picture.BASELINE),
    ):
        curve = picture.Curve(score[part, machine].tolist(), colour)
        lanes.append(picture.Lane(name, "score 0 to 1", [curve], 0.0, 1.0, 60, threshold))
    spans = [
        picture.Span(
            (max(event.start, start) - start) / 120,
            (min(event.stop, start + count) - start) / 120,
            f"{KINDS[event.kind]} {CHANNELS[event.channel]}",
            picture.SHADES[event.kind],
        )
        for event in readings.events
        if event.machine == machine and event.stop > start and event.start < start + count
    ]
    title = f"{NAME}: six sensors, their faults, and what two networks say of them"
    return picture.draw(title, lanes, spans, end=count / 120, unit="hours")
