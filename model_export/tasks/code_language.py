"""`code-language`: bytes in, and after each chunk the language that they are written in.

Many to one: a run of the graph takes any number of bytes and gives one row of logits, after its last one.
The stream may change its language; the network was trained on streams that do.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from model_export import gate, picture
from model_export.corpus import SourceFile
from model_export.data.sources import LANGUAGES, Sources, load_sources
from model_export.parity import Parity
from model_export.progress import Progress
from model_export.recurrent import (
    Memoryless,
    Network,
    Plan,
    Recurrent,
    Window,
    fit,
    parameter_count,
    run,
)
from model_export.step_nodes import Nodes
from model_export.tasks.task import Cell, Folders, Outcome, facts_in_toml, lay_down, lay_down_picture

NAME = "code-language"
HIDDEN, EMBEDDED = 128, 32
BYTES = 256

_PLAN = Plan(steps=1300, peak_rate=3e-3, weight_decay=0.3, state_noise=0.1)
_ROWS, _WINDOW = 64, 128
_SHORTEST, _LONGEST = 64, 1500
"""Bytes of one language before a stream turns to another file."""

_LENGTHS = (16, 64, 256)
_SAMPLES = 300
"""Held-out passages of each language that the accuracy is measured on."""


class Embedding(nn.Module):
    """A row of a table for each byte."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(BYTES, EMBEDDED)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (T, B, EMBEDDED) for int64 (T, B)."""
        return self.table(tokens)


def train(folders: Folders, scale: float) -> Outcome:
    """See `task.Train`.

    Raises:
        FileNotFoundError: A language is missing from this machine.
    """
    started_s = time.process_time()
    sources = load_sources()
    missing = [name for name in LANGUAGES if not sources.training[name] or not sources.held_out[name]]
    if missing:
        raise FileNotFoundError(f"no files of {', '.join(missing)}; `make train` installs what has them")
    torch.manual_seed(_PLAN.seed)
    network = Recurrent(Embedding(), EMBEDDED, HIDDEN, len(LANGUAGES))
    baseline = Memoryless(Embedding(), EMBEDDED, EMBEDDED, len(LANGUAGES))
    plan = replace(_PLAN, steps=max(1, int(_PLAN.steps * scale)))
    for title, fitted in ((NAME, network), (f"{NAME}, memoryless", baseline)):
        with Progress(title, plan.steps, "nats") as progress:
            fit(fitted, _streams(sources.training, plan.seed), plan, progress)
    model = build(network)
    tokens = next(_streams(sources.held_out, seed=4, length=500)).tokens.numpy()
    parity = gate.check(
        network, model.SerializeToString(), tokens, lambda logits: {"language": logits},
        of_last_token=("language",),
    )  # fmt: skip
    facts = _facts(network, sources, parity, plan)
    size = lay_down(folders, NAME, model, _contract(facts))
    lay_down_picture(folders, NAME, _picture(sources, network, baseline))
    passages, labels = _passages(sources.held_out, max(_LENGTHS), seed=3)
    counts = np.stack([_byte_counts(sources.training[name]) for name in LANGUAGES])
    rows = (
        ("gru", parameter_count(network), size, *_accuracies(_guesses(network, passages), labels)),
        ("all bytes so far, without order", "", "", *_accuracies(_bag_guesses(counts, passages), labels)),
        ("memoryless", parameter_count(baseline), "", *_accuracies(_guesses(baseline, passages), labels)),
    )
    return Outcome(
        NAME,
        f"{len(LANGUAGES)} languages; accuracy after so many bytes from anywhere in files it never saw",
        ("network", "parameters", "file, bytes", *(f"{length} bytes" for length in _LENGTHS)),
        rows,
        {**facts, "cpu minutes": round((time.process_time() - started_s) / 60, 1)},
    )


def build(network: Recurrent) -> onnx.ModelProto:
    """Builds the step graph: bytes (time, batch) in, one row of logits per session out."""
    nodes = Nodes()
    recurrent, head = network.weights()
    assert isinstance(network.front, Embedding)
    token = nodes.input("token", ["time", "batch"], TensorProto.INT64)
    table = nodes.weight("table", network.front.table.weight.detach().numpy())
    features = nodes.add("Gather", [table, token], "features")
    every = nodes.gru(features, recurrent)
    last = nodes.add("Gather", [every, nodes.weight("last_index", -1)], "last", axis=0)
    nodes.dense(last, head, "language")
    nodes.output("language", ["batch", len(LANGUAGES)])
    return nodes.model(NAME)


def _streams(
    files: dict[str, tuple[SourceFile, ...]], seed: int, rows: int = _ROWS, length: int = _WINDOW
) -> Iterator[Window]:
    """Yields windows of streams that turn to another language now and then, half of the times anew.

    A session is new only where a window begins, so the turn waits for that.
    """
    rng = np.random.default_rng(seed)
    pieces = [_piece(files, rng) for _ in range(rows)]
    while True:
        tokens = np.empty((length, rows), np.int64)
        targets = np.empty((length, rows), np.int64)
        fresh = np.zeros(rows, bool)
        for row in range(rows):
            if len(pieces[row][1]) < length and rng.uniform() < 0.5:
                pieces[row], fresh[row] = _piece(files, rng), True
            filled = 0
            while filled < length:
                label, data = pieces[row]
                taken = data[: length - filled]
                tokens[filled : filled + len(taken), row] = taken
                targets[filled : filled + len(taken), row] = label
                filled += len(taken)
                pieces[row] = (label, data[len(taken) :])
                if filled < length:
                    pieces[row] = _piece(files, rng)
        yield Window(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(fresh))


def _piece(
    files: dict[str, tuple[SourceFile, ...]], rng: np.random.Generator, length: int | None = None
) -> tuple[int, NDArray[np.uint8]]:
    """Returns a language and a passage of it."""
    label = int(rng.integers(len(LANGUAGES)))
    return label, _passage(files[LANGUAGES[label]], rng, length or int(rng.integers(_SHORTEST, _LONGEST)))


def _passage(files: Sequence[SourceFile], rng: np.random.Generator, length: int) -> NDArray[np.uint8]:
    """Returns a passage: from the start of a file one time in four, else from anywhere."""
    data = b""
    while len(data) < _SHORTEST:  # an empty file says nothing
        data = files[int(rng.integers(len(files)))].data
    start = 0 if rng.uniform() < 0.25 else int(rng.integers(max(1, len(data) - length)))
    return np.frombuffer(data[start : start + length], np.uint8)


def _passages(
    files: dict[str, tuple[SourceFile, ...]], length: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns passages int64 (length, rows) and their languages (rows,), as many of each."""
    rng = np.random.default_rng(seed)
    drawn = []
    for name in LANGUAGES:
        long_enough = [file for file in files[name] if len(file.data) >= length]
        drawn += [_passage(long_enough, rng, length) for _ in range(_SAMPLES)]
    return np.stack(drawn, axis=1).astype(np.int64), np.repeat(np.arange(len(LANGUAGES)), _SAMPLES)


def _guesses(network: Network, passages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the likeliest language after every byte, (length, rows)."""
    return run(network, torch.from_numpy(passages)).argmax(dim=2).numpy()


def _bag_guesses(counts: NDArray[np.int64], passages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the guesses of naive Bayes over single bytes: memory of how many, not of their order."""
    log_probs = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
    return log_probs.T[passages].cumsum(axis=0).argmax(axis=2)


def _byte_counts(files: Sequence[SourceFile]) -> NDArray[np.int64]:
    return np.bincount(np.frombuffer(b"".join(file.data for file in files), np.uint8), minlength=BYTES)


def _accuracies(guesses: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[Cell, ...]:
    return tuple(round(float((guesses[length - 1] == labels).mean()), 3) for length in _LENGTHS)


def _facts(network: Recurrent, sources: Sources, parity: Parity, plan: Plan) -> dict[str, Cell]:
    return {
        "data": "files that are on every machine which can train this, see model_export/data/sources.py",
        "data sha256": sources.digest,
        "training bytes": sum(len(file.data) for files in sources.training.values() for file in files),
        "held out bytes": sum(len(file.data) for files in sources.held_out.values() for file in files),
        "network": f"gru, {HIDDEN} units, {parameter_count(network):,} parameters",
        "updates": plan.steps,
        "seed": plan.seed,
        "parity": f"{parity.max_difference:.1e} over {parity.steps} steps",
    }


def _contract(facts: dict[str, Cell]) -> str:
    labels = ", ".join(f'"{name}"' for name in LANGUAGES)
    return f"""\
contract_version = 1
description = "Which language are these bytes written in? Answered after each chunk, for all bytes so far."

[input]
name = "token"
axes = ["time", "batch"]
kind = "token_id"

[vocabulary]
kind = "bytes"
size = {BYTES}

[[state]]
input = "h"
output = "h_next"
axes = [1, "batch", {HIDDEN}]

[[output]]
name = "language"
axes = ["batch", {len(LANGUAGES)}]
role = "logits"
labels = [{labels}]
description = "of the bytes up to the last one of the chunk"

{facts_in_toml(facts)}"""


def _picture(sources: Sources, network: Network, baseline: Network) -> str:
    """Draws the probability of the right language along a stream that turns through all of them."""
    rng = np.random.default_rng(13)
    length = 200
    passages = [
        _passage([file for file in sources.held_out[name] if len(file.data) >= length], rng, length)
        for name in LANGUAGES
    ]
    tokens = torch.from_numpy(np.concatenate(passages).astype(np.int64)[:, np.newaxis])
    given = [torch.softmax(run(each, tokens), dim=2)[:, 0].numpy() for each in (network, baseline)]
    right = np.repeat(np.arange(len(LANGUAGES)), length)
    lanes = [
        picture.Lane(
            name, "probability", [picture.Curve(given[0][:, index].tolist(), picture.OURS)], 0.0, 1.0, 30
        )
        for index, name in enumerate(LANGUAGES)
    ]
    of_right = [values[np.arange(len(right)), right].tolist() for values in given]
    lanes += [
        picture.Lane("right one,", "with memory", [picture.Curve(of_right[0], picture.OURS)], 0.0, 1.0, 60),
        picture.Lane("right one,", "without", [picture.Curve(of_right[1], picture.BASELINE)], 0.0, 1.0, 60),
    ]
    spans = [
        picture.Span(index * length, (index + 1) * length, name, picture.SHADES[index])
        for index, name in enumerate(LANGUAGES)
    ]
    title = f"{NAME}: one stream through eight languages, byte by byte"
    return picture.draw(title, lanes, spans, end=len(right), unit="bytes")
