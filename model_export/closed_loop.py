"""The gate: a step graph leaves only if it computes, in a closed loop, what the PyTorch network computes.

Both sides run the same 500 tokens and feed back their own states, the network token by token, the graph in
chunks of 1, 7 and 64, in batches of 1, 7 and 64. The tolerance is that of `parity`, and so is the noise
recorded beside it: what the network in float32 differs from itself in float64.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.draws import Draws, shape_of
from model_export.export_error import ExportError
from model_export.routes import StepGraph, start
from model_export.soundness import difference, short
from model_export.step import TIME, Layout, Part, Step, arranged, canonical

STEPS = 500
BATCHES = (1, 7, 64)
CHUNKS = (1, 7, 64)
TOLERANCE = 1e-5
TOLERANCE_FLOAT16 = 2e-3
MOST_BYTES = 128 << 20
"""Of the outputs of one run; larger ones are not tried."""


class Measured(NamedTuple):
    """What the gate measured.

    Attributes:
        steps: Steps in the loop.
        batches: Batch sizes tried.
        chunks: Tokens in a call, as tried.
        max_difference: Largest difference between graph and network, over all outputs and states.
        float32_noise: Largest difference between the network as it is and in float64; None if it does
            not run in float64.
    """

    steps: int
    batches: tuple[int, ...]
    chunks: tuple[int, ...]
    max_difference: float
    float32_noise: float | None

    def __str__(self) -> str:
        noise = "" if self.float32_noise is None else f"; float32 itself: {self.float32_noise:.1e}"
        return (
            f"{self.steps} steps in a closed loop, batches {_listed(self.batches)}, chunks "
            f"{_listed(self.chunks)}: largest difference {self.max_difference:.1e}{noise}"
        )


@torch.inference_mode()
def check_closed_loop(step: Step, layout: Layout, graph: StepGraph, draws: Draws) -> Measured:
    """Compares a network with its graph.

    Args:
        step: The network, untouched.
        layout: Its axes.
        graph: What was traced.
        draws: For tokens and session inputs.

    Raises:
        ExportError: Some difference is above the tolerance, or the graph does not run.
    """
    session = _session(graph.model.SerializeToString())
    precise = _precise(step)
    chunks = CHUNKS if graph.layout.has_time else (1,)
    batches = [size for size in (BATCHES if layout.has_batch else (1,)) if _fits(layout, size, max(chunks))]
    worst, noise = 0.0, 0.0 if precise is not None else None
    for batch in batches or [1]:
        loop = _Loop(step, precise, layout, graph, session, draws, batch)
        try:
            found, own = loop.run(chunks)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"the graph does not run with {batch} rows: {short(error)}") from error
        worst = max(worst, found)
        noise = None if noise is None or own is None else max(noise, own)
    dtypes = [part.dtype for group in layout for part in group]
    tolerance = TOLERANCE_FLOAT16 if torch.float16 in dtypes else TOLERANCE
    measured = Measured(STEPS, tuple(batches or [1]), chunks, worst, noise)
    if not worst <= tolerance:
        raise ExportError(f"{measured}; at most {tolerance:g} is let through")
    return measured


class _Loop:
    """One batch: the network once, the graph in every size of chunk beside it."""

    def __init__(
        self,
        step: Step,
        precise: Step | None,
        layout: Layout,
        graph: StepGraph,
        session: ort.InferenceSession,
        draws: Draws,
        batch: int,
    ) -> None:
        self._networks = [step] if precise is None else [step, precise]
        self._layout = layout
        self._graph = graph
        self._ort = session
        self._draws = draws
        self._batch = batch
        self._segment = max(CHUNKS)
        starts = [
            start(tensor, part, batch)
            for tensor, part in zip(step.example.states, layout.states, strict=True)
        ]
        self._starts = [canonical(tensor, part) for tensor, part in zip(starts, layout.states, strict=True)]
        self._given = [
            draws.draw(len(layout.tokens) + number, shape_of(part, batch, 1))
            for number, part in enumerate(layout.session)
        ]

    def run(self, chunks: Sequence[int]) -> tuple[float, float | None]:
        """Returns the largest difference of the graph, and of the network from itself in float64."""
        worst, noise = 0.0, 0.0 if len(self._networks) == 2 else None
        networks = [self._starts for _ in self._networks]
        graphs = dict.fromkeys(chunks, self._starts)
        for begin in range(0, STEPS, self._segment):
            count = min(self._segment, STEPS - begin)
            tokens = [
                self._draws.draw(number, (count, *shape_of(part.without(TIME), self._batch, 1)))
                for number, part in enumerate(self._layout.tokens)
            ]
            expected, networks[0] = self._network(self._networks[0], tokens, networks[0])
            if noise is not None:
                given, networks[1] = self._network(self._networks[1], tokens, networks[1])
                noise = max(noise, _worst(expected, given))
            for chunk in chunks:
                found, graphs[chunk] = self._graph_differs(tokens, graphs[chunk], chunk, expected)
                worst = max(worst, found)
        return worst, noise

    def _network(
        self, step: Step, tokens: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Returns outputs and states after every token, canonical without time; and the last states."""
        layout, results = self._layout, []
        given = [
            _like(step, arranged(t, part)) for t, part in zip(self._given, layout.session, strict=True)
        ]
        states = [_like(step, state) for state in states]
        for at in range(len(tokens[0])):
            token = [_one(step, t[at], part) for t, part in zip(tokens, layout.tokens, strict=True)]
            before = [arranged(state, part) for state, part in zip(states, layout.states, strict=True)]
            outputs, after = step(token, before, given)
            made = [
                _without_time(output, part) for output, part in zip(outputs, layout.outputs, strict=True)
            ]
            states = [canonical(state, part) for state, part in zip(after, layout.states, strict=True)]
            results.append([*made, *states])
        return results, list(states)

    def _graph_differs(
        self,
        tokens: Sequence[Tensor],
        states: Sequence[Tensor],
        chunk: int,
        expected: list[list[Tensor]],
    ) -> tuple[float, list[Tensor]]:
        layout, worst = self._graph.layout, 0.0
        count = len(layout.outputs)
        for begin in range(0, len(tokens[0]), chunk):
            end = min(begin + chunk, len(tokens[0]))
            parts = [
                arranged(t[begin:end] if TIME in part.axes else t[begin], part)
                for t, part in zip(tokens, layout.tokens, strict=True)
            ]
            parts += [arranged(state, part) for state, part in zip(states, layout.states, strict=True)]
            parts += [arranged(t, part) for t, part in zip(self._given, layout.session, strict=True)]
            feed = dict(zip(self._graph.inputs, (part.numpy() for part in parts), strict=True))
            made = [torch.from_numpy(array) for array in self._run(feed)]
            for number, (output, part) in enumerate(zip(made[:count], layout.outputs, strict=True)):
                wanted = [step[number] for step in expected[begin:end]]
                value = canonical(output, part)
                right = torch.stack(wanted) if TIME in part.axes else wanted[-1]
                worst = max(worst, difference(value, right))
            states = [canonical(t, part) for t, part in zip(made[count:], layout.states, strict=True)]
            pairs = zip(states, expected[end - 1][count:], strict=True)
            worst = max([worst, *(difference(state, right) for state, right in pairs)])
            if not math.isfinite(worst):
                raise ExportError(self._not_alike(made, layout, expected[end - 1]))
        return worst, list(states)

    def _run(self, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        known = {entry.name for entry in self._ort.get_inputs()}
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items() if name in known}
        return list(self._ort.run(list(self._graph.outputs), arrays))

    def _not_alike(self, made: Sequence[Tensor], layout: Layout, expected: Sequence[Tensor]) -> str:
        parts = (*layout.outputs, *layout.states)
        for name, tensor, part, right in zip(self._graph.outputs, made, parts, expected, strict=True):
            value = canonical(tensor, part)
            value = value[-1] if TIME in part.axes else value
            if value.shape != right.shape:
                return (
                    f"the graph gives {name} {list(value.shape)} for {self._batch} rows, expected "
                    f"{list(right.shape)}"
                )
        return f"the graph or the network gives values that are not finite with {self._batch} rows"


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot load the graph: {short(error)}") from error


def _precise(step: Step) -> Step | None:
    """Returns the network in float64, if it runs so."""
    precise = copy.deepcopy(step).double()
    example = step.example
    groups = [
        [_like(precise, t) for t in group] for group in (example.tokens, example.states, example.given)
    ]
    try:
        _, after = precise(*groups)
    except Exception:  # noqa: BLE001 -- a network may name its dtype; its noise is then not known
        return None
    fits = all(now.dtype == then.dtype for now, then in zip(after, groups[1], strict=True))
    return precise if fits else None


def _like(step: Step, tensor: Tensor) -> Tensor:
    """Returns floats as float64 for a network in float64."""
    is_double = any(weight.dtype == torch.float64 for weight in step.parameters())
    return tensor.double() if is_double and tensor.is_floating_point() else tensor


def _one(step: Step, token: Tensor, part: Part) -> Tensor:
    token = arranged(token, part.without(TIME))
    token = token.unsqueeze(part.axes.index(TIME)) if TIME in part.axes else token
    return _like(step, token)


def _without_time(output: Tensor, part: Part) -> Tensor:
    output = output.select(part.axes.index(TIME), 0) if TIME in part.axes else output
    return canonical(output, part.without(TIME))


def _worst(expected: list[list[Tensor]], given: list[list[Tensor]]) -> float:
    pairs = (
        pair for left, right in zip(expected, given, strict=True) for pair in zip(left, right, strict=True)
    )
    return max(difference(left, right) for left, right in pairs)


def _fits(layout: Layout, batch: int, chunk: int) -> bool:
    per_row = sum(math.prod(part.numbers) * part.dtype.itemsize for part in layout.outputs)
    return batch == 1 or per_row * batch * chunk <= MOST_BYTES


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
