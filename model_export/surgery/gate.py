"""The parity gate of a conversion: the step graph in a closed loop beside the whole-sequence graph.

The whole-sequence graph runs random sequences at once, with the extents it was exported with left
undeclared; where it cannot, because they are written into it, in windows of just those extents. The step
graph runs the same tokens one at a time and in chunks, from its own states. onnxruntime runs both; what it
refuses of the former (layout 1) the reference evaluator of onnx runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from model_export.surgery.axes import BATCH, TIME, number_of
from model_export.surgery.convert import StepGraph
from model_export.surgery.graph_inputs import GraphInputs, Reading, axes_in
from model_export.surgery.preparing import one_line
from model_export.surgery.value import Refused

STEPS = 500
ROWS = 3
CHUNKS = (1, 7, 64)
PREFIXES = (1, 2, 7, 64)
"""Sequences so long are run as well where an output is that of the last token."""
TOLERANCE = 1e-5
TOLERANCE_FLOAT16 = 2e-3
"""Absolute up to magnitude 1, relative above it; the second where anything is float16."""

SCALES = (1.0, 0.1, 0.01)
"""Sizes of features; the smaller ones for a network that large ones drive to infinity."""

Arrays = dict[str, NDArray[Any]]


class Parity(NamedTuple):
    """What the gate measured.

    Attributes:
        steps: Steps compared per row.
        rows: Rows.
        steps_per_call: Tokens per run of the step graph, as tried.
        whole_steps: Tokens of a sequence that the whole-sequence graph took at once.
        max_difference: Largest difference.
    """

    steps: int
    rows: int
    steps_per_call: tuple[int, ...]
    whole_steps: int
    max_difference: float


class Whole:
    """The whole-sequence graph, run by onnxruntime or else by onnx's reference.

    Raises:
        Refused: Neither can load it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = undeclared(model)
        self._outputs = [output.name for output in model.graph.output]
        self._session: ort.InferenceSession | None = None
        self._reference: ReferenceEvaluator | None = None
        try:
            self._session = session(self._model)
        except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
            try:
                self._reference = ReferenceEvaluator(self._model)
            except Exception:  # noqa: BLE001 -- the first reason is the better one
                raise Refused(
                    f"onnxruntime cannot run the whole-sequence graph: {one_line(error)}"
                ) from None

    def run(self, feed: Arrays) -> Arrays:
        """Runs sequences; raises whatever the backend raises."""
        if self._session is not None:
            taken = {node.name for node in self._session.get_inputs()}
            results = self._session.run(None, {name: feed[name] for name in feed if name in taken})
        else:
            assert self._reference is not None, "bug: no backend"
            results = list(self._reference.run(None, feed))
        return dict(zip(self._outputs, results, strict=True))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Loads a graph with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def undeclared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph that says the ranks of its tensors, not their extents."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for one in (*copy.graph.input, *copy.graph.output):
        for dim in one.type.tensor_type.shape.dim:
            dim.Clear()
    copy.ir_version = min(copy.ir_version, 10) or 10
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, 23)
    return copy


def check(model: onnx.ModelProto, inputs: GraphInputs, reading: Reading, step: StepGraph) -> Parity:
    """Compares both graphs.

    Raises:
        Refused: They differ, or one of them does not run.
    """
    gate = _Gate(Whole(model), Stepper(step), inputs, reading, step)
    for scale in SCALES:
        try:
            return gate.measure(scale)
        except _NotFinite as error:
            name = str(error)
    raise Refused(f"output {name!r} is not finite on random tokens; look for weights that are not")


class _NotFinite(Exception):
    """An output is infinite, or no number; it is named."""


class _Gate(NamedTuple):
    """Both graphs, and what is known of their tensors."""

    whole: Whole
    stepper: "Stepper"
    inputs: GraphInputs
    reading: Reading
    step: StepGraph

    def measure(self, scale: float) -> Parity:
        """Compares on tokens of some size."""
        step = self.step
        rows = ROWS if self.reading.batch is not None and not step.document.get("rows_per_run") else 1
        feed = drawn(self.inputs, self.reading, step, STEPS, rows, scale=scale)
        try:
            expected = self.whole.run(feed)
        except Exception:  # noqa: BLE001 -- extents are written into it; they are kept then
            return self._measure_windows(scale)
        if not _fits(step, expected, STEPS, rows):
            return self._measure_windows(scale)
        worst = max(self._compare(expected, feed, chunk) for chunk in CHUNKS)
        if any(value.reach == "last" for value in step.outputs.values()):
            for count in PREFIXES:
                part = cut(feed, self.inputs, self.reading, 0, count)
                worst = max(worst, self._compare(self.whole.run(part), part, 1))
        return self._judged(Parity(STEPS, rows, CHUNKS, STEPS, worst))

    def _measure_windows(self, scale: float) -> Parity:
        """Compares sequences of just the extents that the graph was exported with."""
        steps = self.step.frozen[TIME] or STEPS
        rows = self.step.frozen[BATCH] or (1 if self.reading.batch is None else ROWS)
        chunks = tuple(sorted({min(chunk, steps) for chunk in CHUNKS}))
        worst = 0.0
        count = -(-STEPS // steps)
        for number in range(count):
            feed = drawn(self.inputs, self.reading, self.step, steps, rows, scale=scale, seed=number)
            try:
                expected = self.whole.run(feed)
            except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
                raise Refused(
                    f"the whole-sequence graph fails on {steps} tokens: {one_line(error)}"
                ) from None
            worst = max(worst, *(self._compare(expected, feed, chunk) for chunk in chunks))
        return self._judged(Parity(count * steps, rows, chunks, steps, worst))

    def _compare(self, expected: Arrays, feed: Arrays, chunk: int) -> float:
        """Returns the largest difference."""
        given = self.stepper.run(feed, self.reading, self.inputs, chunk)
        worst = 0.0
        for name in self.step.outputs:
            left = np.asarray(expected[name], np.float64)
            right = np.asarray(given[name], np.float64).reshape(left.shape)
            if not (np.isfinite(left).all() and np.isfinite(right).all()):
                raise _NotFinite(name)
            worst = max(
                worst, float((np.abs(left - right) / np.maximum(1.0, np.abs(left))).max(initial=0.0))
            )
        return worst

    def _judged(self, parity: Parity) -> Parity:
        tolerance = TOLERANCE_FLOAT16 if self._is_coarse() else TOLERANCE
        if not parity.max_difference <= tolerance:
            raise Refused(
                f"the step graph differs from the whole-sequence graph by {parity.max_difference:.2g} "
                "within "
                f"{parity.steps} steps, at most {tolerance:g} is let through; no file is written"
            )
        return parity

    def _is_coarse(self) -> bool:
        infos = (*self.step.model.graph.input, *self.step.model.graph.output)
        return any(one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for one in infos)


def _fits(step: StepGraph, expected: Arrays, steps: int, rows: int) -> bool:
    """Says whether the outputs have as many entries as there are tokens and rows."""
    for name, value in step.outputs.items():
        total = 1
        for axis in value.axes:
            total *= steps if TIME in axis else rows if BATCH in axis else number_of(axis)
        if expected[name].size != total:
            return False
    return True


def drawn(
    inputs: GraphInputs,
    reading: Reading,
    step: StepGraph,
    steps: int,
    rows: int,
    *,
    scale: float = 1.0,
    seed: int = 0,
) -> Arrays:
    """Draws sequences: features from a normal distribution, ids from the vocabulary."""
    rng = np.random.default_rng([seed, steps])
    feed: Arrays = {}
    size = step.document.get("vocabulary", {}).get("size", 2)
    for token in inputs.tokens:
        axes = axes_in(token, reading)
        shape = [steps if TIME in axis else rows if BATCH in axis else number_of(axis) for axis in axes]
        dtype = helper.tensor_dtype_to_np_dtype(token.type.tensor_type.elem_type)
        own = next((one.get("size", size) for one in _entries(step) if one["name"] == token.name), size)
        whole = rng.integers(0, own, shape)
        feed[token.name] = (scale * rng.standard_normal(shape) if dtype.kind == "f" else whole).astype(
            dtype
        )
    for start in inputs.starts:
        dtype = helper.tensor_dtype_to_np_dtype(start.type.tensor_type.elem_type)
        axes = step.starts[start.name]
        feed[start.name] = np.zeros([rows if BATCH in axis else number_of(axis) for axis in axes], dtype)
    for name in inputs.lengths:
        feed[name] = np.full(rows, steps, np.int32)
    return feed


def _entries(step: StepGraph) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = step.document["input"]
    return entries


def cut(feed: Arrays, inputs: GraphInputs, reading: Reading, start: int, end: int) -> Arrays:
    """Returns some of the tokens."""
    part = dict(feed)
    for token in inputs.tokens:
        if token.name not in reading.per_session:
            part[token.name] = feed[token.name][(slice(None),) * reading.time + (slice(start, end),)]
    for name in inputs.lengths:
        part[name] = np.full_like(feed[name], end - start)
    return part


class Stepper:
    """The step graph in a closed loop."""

    def __init__(self, step: StepGraph) -> None:
        self._step = step
        try:
            self._session = session(step.model)
        except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
            raise Refused(f"onnxruntime cannot run the step graph: {one_line(error)}") from None

    def run(self, feed: Arrays, reading: Reading, inputs: GraphInputs, chunk: int) -> Arrays:
        """Runs tokens in chunks; outputs of the last token are those of the last chunk."""
        rows = next(iter(_rows(feed, inputs, reading)), 1)
        states = {pair.input: _spread(pair, first, rows) for pair, first in self._step.states}
        names = [*self._step.outputs, *(pair.output for pair, _ in self._step.states)]
        count = self._count(feed, inputs, reading)
        parts: list[Arrays] = []
        for start in range(0, count, chunk):
            part = cut(feed, inputs, reading, start, start + chunk)
            tokens = {token.name: part[token.name] for token in inputs.tokens}
            results = dict(zip(names, self._session.run(names, {**tokens, **states}), strict=True))
            states = {pair.input: results[pair.output] for pair, _ in self._step.states}
            parts.append(results)
        return {name: self._joined(name, parts) for name in self._step.outputs}

    def _joined(self, name: str, parts: Sequence[Arrays]) -> NDArray[Any]:
        axes = self._step.outputs[name].axes
        place = next((at for at, axis in enumerate(axes) if TIME in axis), None)
        if place is None:
            return parts[-1][name]
        return np.concatenate([part[name] for part in parts], place)

    def _count(self, feed: Arrays, inputs: GraphInputs, reading: Reading) -> int:
        token = next(token for token in inputs.tokens if token.name not in reading.per_session)
        return int(feed[token.name].shape[reading.time])


def _rows(feed: Arrays, inputs: GraphInputs, reading: Reading) -> Iterator[int]:
    for token in inputs.tokens:
        if token.name not in reading.per_session and reading.batch is not None:
            yield int(feed[token.name].shape[reading.batch])


def _spread(pair: Any, first: NDArray[Any], rows: int) -> NDArray[Any]:
    place = next((at for at, axis in enumerate(pair.axes) if BATCH in axis), None)
    return first if place is None else np.repeat(np.expand_dims(first, place), rows, place)
