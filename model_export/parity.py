"""The parity gate: a step graph leaves only if it computes what the trained network computes.

Both sides run the same real text and feed back their own states, so that a difference in one step has
500 steps to grow. The graph runs it twice: one step per call, and many. An exporter that mistakes a gate
passes a single step far more easily, and is off by more than 0.1 here. The tolerance is 1e-5, absolute up
to magnitude 1 and relative above it: near 32 neighbouring float32 numbers are 4e-6 apart already.

A network may amplify rounding instead of damping it; the difference then measures the network rather
than its graph, and grows with the stream. The training avoids that (see `train`), and the float32 noise of
the network itself, its difference from float64 in the same loop, is recorded beside the outcome.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from model_export.networks import StepNetwork

STEPS = 500
STEPS_PER_CALL = (1, 50)
BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-5


class ParityError(Exception):
    """The step graph differs from the network."""


class Parity(NamedTuple):
    """What the gate measured.

    Attributes:
        steps: Steps in the loop.
        batches: Batch sizes tried.
        steps_per_call: Steps that one call of the graph takes, as tried.
        max_difference: Largest difference between graph and network, over all outputs and states.
        float32_noise: Largest difference between the network in float32 and in float64.
    """

    steps: int
    batches: tuple[int, ...]
    steps_per_call: tuple[int, ...]
    max_difference: float
    float32_noise: float


def check_parity(network: StepNetwork, graph: bytes, text: bytes) -> Parity:
    """Compares a network with its step graph.

    Args:
        network: In evaluation mode.
        graph: The serialised step graph.
        text: Real bytes; the rows run different parts of them.

    Raises:
        ParityError: Some difference is above 1e-5, or not a number.
    """
    session = open_session(graph)
    precise = copy.deepcopy(network).double()
    worst = noise = 0.0
    for batch in BATCHES:
        tokens = _tokens(text, batch)
        expected = _run_network(network, tokens)
        noise = max(noise, difference(expected, _run_network(precise, tokens)))
        for count in STEPS_PER_CALL:
            given = _run_graph(session, network.state_names, network.hidden, tokens, count)
            worst = max(worst, difference(expected, given))
    if not worst <= TOLERANCE:
        raise ParityError(
            f"largest difference in {STEPS} steps is {worst:g}, at most {TOLERANCE:g} is let through; "
            f"the network in float32 differs from itself in float64 by {noise:g}"
        )
    return Parity(STEPS, BATCHES, STEPS_PER_CALL, worst, noise)


def open_session(graph: bytes) -> ort.InferenceSession:
    """Opens a graph to run on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of every input with a default
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tokens(text: bytes, batch: int) -> NDArray[np.int64]:
    """Returns tokens (STEPS, batch)."""
    source = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = [row * len(source) // batch for row in range(batch)]
    return np.stack([np.resize(source[start:], STEPS) for start in starts], axis=1)


@torch.inference_mode()
def _run_network(network: StepNetwork, tokens: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Returns logits (STEPS, batch, 256), token_log_prob (STEPS, batch), and states after every step."""
    states = tuple(state.to(network.table.dtype) for state in network.initial(tokens.shape[1]))
    rows = []
    for row in tokens:
        outputs = network(torch.from_numpy(row), *states)
        rows.append([output.numpy() for output in outputs])
        states = outputs[2:]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _run_graph(
    session: ort.InferenceSession,
    state_names: Sequence[str],
    hidden: int,
    tokens: NDArray[np.int64],
    steps_per_call: int,
) -> list[NDArray[Any]]:
    """Returns what `_run_network` returns; the states only after every call."""
    states = [np.zeros((tokens.shape[1], hidden), np.float32) for _ in state_names]
    parts = []
    for start in range(0, STEPS, steps_per_call):
        feed = dict(zip(state_names, states, strict=True))
        given = session.run(None, {"token": tokens[start : start + steps_per_call], **feed})
        states = given[2:]
        parts.append(given)
    outputs = [np.concatenate(column) for column in zip(*(part[:2] for part in parts), strict=True)]
    return outputs + [np.stack(column) for column in zip(*(part[2:] for part in parts), strict=True)]


def difference(expected: Sequence[NDArray[Any]], given: Sequence[NDArray[Any]]) -> float:
    """Returns the largest difference; states given after some steps only are compared there.

    It is absolute up to magnitude 1 and relative above it; infinite if a value is not finite.
    """
    worst = 0.0
    for left, right in zip(expected, given, strict=True):
        stride = len(left) // len(right)
        compared = left[stride - 1 :: stride]
        difference = np.abs(compared - right) / np.maximum(1.0, np.abs(compared))
        worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else math.inf)
    return worst
