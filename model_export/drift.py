"""The drift gate: a smaller step graph beside the float32 one, 1,000 steps in a closed loop.

Both run the same tokens, each from its own states, so what rounding does to a state may grow. The drift of
a step is the root mean square of the outputs' differences over that of the outputs themselves. What is let
through stays below a bound at every step. The report has the growth, bytes, speed, and bits per byte where
the network predicts bytes.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from model_export.corpus import join, load_corpus
from model_export.drift_chart import draw
from model_export.surgery.gate import session
from model_export.surgery.value import Refused

STEPS = 1000
ROWS = 4
MAX_DRIFT = 0.05
"""Default bound: a twentieth of the outputs' size. What a network rounds away costs far less than this."""

TIMED = (1, 64)
"""Rows of the runs that are timed."""

_SEED = 11
_RUNS, _ROUNDS = 40, 5

Graph = tuple[onnx.ModelProto, Mapping[str, Any]]


class Drift(NamedTuple):
    """What the gate measured.

    Attributes:
        by_step: Drift of each step.
        bound: What was allowed.
        file_bytes: Of the float32 graph, and of the smaller one.
        state_bytes: Of a session's record, likewise.
        run_us: Rows -> microseconds of a run of one token, likewise.
        bits_per_byte: Likewise; None if the network does not predict bytes.
    """

    by_step: tuple[float, ...]
    bound: float
    file_bytes: tuple[int, int]
    state_bytes: tuple[int, int]
    run_us: dict[int, tuple[float, float]]
    bits_per_byte: tuple[float, float] | None

    @property
    def peak(self) -> float:
        """The largest drift of a step."""
        return max(self.by_step)

    @property
    def growth(self) -> float:
        """Mean drift of the last quarter over that of the second one; 1 is none."""
        quarter = len(self.by_step) // 4
        early = float(np.mean(self.by_step[quarter : 2 * quarter]))
        late = float(np.mean(self.by_step[-quarter:]))
        return late / early if early else 1.0

    def in_words(self) -> str:
        """Returns the figures in one line."""
        words = [
            f"peak {self.peak:.2g} of the outputs' size in {len(self.by_step)} steps",
            f"growth {self.growth:.2f}",
            f"file {self.file_bytes[0]} to {self.file_bytes[1]} bytes",
            f"state {self.state_bytes[0]} to {self.state_bytes[1]} bytes",
            *(f"{rows} rows {was:.0f} to {now:.0f} us" for rows, (was, now) in self.run_us.items()),
        ]
        if self.bits_per_byte is not None:
            words.append(f"{self.bits_per_byte[0]:.4f} to {self.bits_per_byte[1]:.4f} bits/byte")
        return "; ".join(words)

    def write(self, folder: Path) -> None:
        """Writes drift.json and drift.svg."""
        figures = {**self._asdict(), "peak": self.peak, "growth": self.growth}
        (folder / "drift.json").write_text(json.dumps(figures, indent=2) + "\n")
        (folder / "drift.svg").write_text(draw(self.by_step, self.bound, self.in_words()))


def check_drift(
    whole: Graph, smaller: Graph, *, max_drift: float = MAX_DRIFT, tokens: NDArray[Any] | None = None
) -> Drift:
    """Compares a step graph with a smaller one.

    Args:
        whole: The float32 graph and its contract.
        smaller: The other one, with the same outputs.
        max_drift: Bound of every step's drift.
        tokens: (STEPS, ROWS) of the only input; None draws them, or takes held-out bytes for a network
            over bytes.

    Raises:
        Refused: The drift is above the bound, or something is not finite.
    """
    loops = (_Loop(*whole), _Loop(*smaller))
    stream = loops[0].tokens(tokens)
    results = [loop.run(stream) for loop in loops]
    by_step = _drift(*results)
    if not max(by_step) <= max_drift:
        worst = int(np.argmax(by_step))
        raise Refused(
            f"drift is {by_step[worst]:.2g} of the outputs' size at step {worst + 1} of {STEPS}, at most "
            f"{max_drift:g} is let through; leave out --int8 or --float16-state, or raise --max-drift"
        )
    ids = stream.get(loops[0].token_name)
    bits = [loop.bits(result, ids) for loop, result in zip(loops, results, strict=True)]
    return Drift(
        tuple(by_step),
        max_drift,
        (loops[0].file_bytes, loops[1].file_bytes),
        (loops[0].state_bytes, loops[1].state_bytes),
        _timed(loops, stream),
        (bits[0], bits[1]) if bits[0] is not None and bits[1] is not None else None,
    )


def _drift(whole: Sequence[NDArray[Any]], smaller: Sequence[NDArray[Any]]) -> list[float]:
    """Returns the drift of each step, of the worst output."""
    worst = np.zeros(STEPS)
    for left, right in zip(whole, smaller, strict=True):
        size = float(np.sqrt(np.mean(left**2))) or 1.0
        error = np.sqrt(np.mean((left - right).reshape(STEPS, -1) ** 2, axis=1)) / size
        worst = np.maximum(worst, np.where(np.isfinite(error), error, np.inf))
    return [float(value) for value in worst]


def _timed(loops: Sequence["_Loop"], stream: Mapping[str, NDArray[Any]]) -> dict[int, tuple[float, float]]:
    """Times runs of one token, in turns; the best of a few rounds each."""
    found = {}
    for rows in TIMED:
        if rows > 1 and not loops[0].has_batch:
            continue
        best = [float("inf")] * len(loops)
        for _ in range(_ROUNDS):
            for at, loop in enumerate(loops):
                best[at] = min(best[at], loop.time_us(stream, rows))
        found[rows] = (best[0], best[1])
    return found


class _Loop:
    """A step graph in a closed loop, one token at a time."""

    def __init__(self, model: onnx.ModelProto, document: Mapping[str, Any]) -> None:
        self._document = document
        self._session: ort.InferenceSession = session(model)
        self.file_bytes = model.ByteSize()
        self._states = [(entry, self._first(entry)) for entry in document["state"]]
        self._outputs = [entry for entry in document["output"] if entry.get("role") != "token_log_prob"]
        given = document["input"]
        self._inputs = given if isinstance(given, list) else [given]
        self.token_name = self._inputs[0]["name"]
        self.has_batch = all("batch" in entry["axes"] for entry in (*self._inputs, *document["state"]))

    @property
    def state_bytes(self) -> int:
        """Of one session."""
        return sum(first.nbytes for _, first in self._states)

    def _declared(self, name: str) -> Any:
        return next(one for one in self._session.get_inputs() if one.name == name)

    def _dtype(self, name: str) -> Any:
        words = {
            "tensor(float)": "f4",
            "tensor(float16)": "f2",
            "tensor(double)": "f8",
            "tensor(bool)": "?",
        }
        declared = self._declared(name).type
        return np.dtype(words.get(declared) or declared[len("tensor(") : -1])

    def _first(self, entry: Mapping[str, Any]) -> NDArray[Any]:
        """Returns a session's first state, without the batch axis."""
        shape = [extent for extent in entry["axes"] if extent != "batch"]
        dtype = self._dtype(entry["input"])
        return np.array(np.broadcast_to(np.asarray(entry.get("initial", 0), dtype), shape))

    def tokens(self, given: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        """Returns a stream for each input, (STEPS, ROWS, ...)."""
        rng = np.random.default_rng(_SEED)
        stream: dict[str, NDArray[Any]] = {}
        sizes = self._document.get("vocabulary", {})
        for entry in (*self._inputs, *self._document.get("session_input", [])):
            shape = [extent for extent in entry["axes"] if extent not in ("batch", "time")]
            dtype = self._dtype(entry["name"])
            size = entry.get("size", sizes.get("size", 2))
            drawn = rng.standard_normal((STEPS, ROWS, *shape)) if dtype.kind == "f" else None
            ids = rng.integers(0, size, (STEPS, ROWS, *shape))
            stream[entry["name"]] = (drawn if drawn is not None else ids).astype(dtype)
        for entry in self._document.get("session_input", []):
            stream[entry["name"]][:] = stream[entry["name"]][0]
        if given is None and sizes.get("kind") == "bytes":
            given = _held_out()
        if given is not None:
            stream[self.token_name] = given.astype(self._dtype(self.token_name))
        return stream

    def _feed(
        self, stream: Mapping[str, NDArray[Any]], step: int, rows: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        feed = {}
        for entry in (*self._inputs, *self._document.get("session_input", [])):
            feed[entry["name"]] = _laid(stream[entry["name"]][step][list(rows)], entry["axes"])
        return feed

    def _start(self, row_count: int) -> dict[str, NDArray[Any]]:
        return {
            entry["input"]: _laid(np.repeat(first[np.newaxis], row_count, 0), entry["axes"])
            for entry, first in self._states
        }

    def run(self, stream: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
        """Returns each output of every step, (STEPS, ...)."""
        groups = [range(ROWS)] if self.has_batch else [[row] for row in range(ROWS)]
        found = [[self._stepped(stream, rows)] for rows in groups]
        return [
            np.concatenate([part[0][at].reshape(STEPS, -1) for part in found], axis=1)
            for at in range(len(self._outputs))
        ]

    def _stepped(
        self, stream: Mapping[str, NDArray[Any]], rows: Sequence[int]
    ) -> list[NDArray[np.float64]]:
        states = self._start(len(rows))
        names = [entry["name"] for entry in self._outputs]
        nexts = [entry["output"] for entry, _ in self._states]
        steps = []
        for step in range(STEPS):
            results = self._session.run([*names, *nexts], {**self._feed(stream, step, rows), **states})
            states = dict(zip(states, results[len(names) :], strict=True))
            steps.append(
                [_by_row(one, entry["axes"]) for one, entry in zip(results, self._outputs, strict=False)]
            )
        return [np.stack(column).astype(np.float64) for column in zip(*steps, strict=True)]

    def time_us(self, stream: Mapping[str, NDArray[Any]], rows: int) -> float:
        """Returns the mean of some runs."""
        feed = {**self._feed(stream, 0, [row % ROWS for row in range(rows)]), **self._start(rows)}
        started = time.perf_counter()
        for _ in range(_RUNS):
            self._session.run(None, feed)
        return (time.perf_counter() - started) / _RUNS * 1e6

    def bits(self, results: Sequence[NDArray[np.float64]], tokens: NDArray[Any] | None) -> float | None:
        """Returns bits per token that the logits give the next one; None without logits over bytes."""
        vocabulary = self._document.get("vocabulary", {})
        place = next((at for at, entry in enumerate(self._outputs) if entry.get("role") == "logits"), None)
        if place is None or vocabulary.get("kind") != "bytes" or tokens is None:
            return None
        logits = results[place].reshape(STEPS, ROWS, -1)[:-1]
        most = logits.max(-1, keepdims=True)
        sums = np.log(np.exp(logits - most).sum(-1)) + most[..., 0]
        chosen = np.take_along_axis(logits, tokens[1:, :, np.newaxis].astype(np.int64), -1)[..., 0]
        return float(np.mean(sums - chosen) / np.log(2))


def _laid(rows: NDArray[Any], axes: Sequence[int | str]) -> NDArray[Any]:
    """Returns values by row with their axes where the graph has them; one token."""
    numbers = [place for place, extent in enumerate(axes) if extent not in ("batch", "time")]
    if "batch" not in axes:
        shape = [1 if extent == "time" else int(extent) for extent in axes]
        return np.ascontiguousarray(rows[0].reshape(shape))
    place = list(axes).index("batch")
    before = sum(number < place for number in numbers)
    moved = np.moveaxis(rows, 0, before)
    shape = [1 if extent == "time" else len(rows) if extent == "batch" else int(extent) for extent in axes]
    return np.ascontiguousarray(moved.reshape(shape))


def _by_row(array: NDArray[Any], axes: Sequence[int | str]) -> NDArray[Any]:
    """Returns an output of one token with its batch axis first."""
    if "batch" not in axes:
        return array.reshape(1, -1)
    moved = np.moveaxis(array, list(axes).index("batch"), 0)
    return moved.reshape(len(moved), -1)


def _held_out() -> NDArray[np.int64]:
    """Returns held-out bytes of the corpus, (STEPS, ROWS)."""
    source = np.frombuffer(join(load_corpus().held_out), np.uint8).astype(np.int64)
    starts = [row * len(source) // ROWS for row in range(ROWS)]
    return np.stack([np.resize(source[start:], STEPS) for start in starts], axis=1)
