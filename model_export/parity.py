"""The parity gate: a step graph leaves only if it computes what the trained network computes.

Both sides run the same real text and feed back their own states, so that a difference in one step has
500 steps to grow; an exporter that mistakes a gate passes a single step far more easily, and is off by
more than 0.1 here. The tolerance is 1e-5, absolute up to magnitude 1 and relative above it: near 32
neighbouring float32 numbers are 4e-6 apart already.

A network may amplify rounding instead of damping it; the difference then measures the network rather
than its graph, and grows with the stream. The training avoids that (see `train`), and the float32 noise of
the network itself, its difference from float64 in the same loop, is recorded beside the outcome.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from model_export.networks import StepNetwork

STEPS = 500
BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-5


class ParityError(Exception):
    """The step graph differs from the network."""


class Parity(NamedTuple):
    """What the gate measured.

    Attributes:
        steps: Steps in the loop.
        batches: Batch sizes tried.
        max_difference: Largest difference between graph and network, over all outputs and states.
        float32_noise: Largest difference between the network in float32 and in float64.
    """

    steps: int
    batches: tuple[int, ...]
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
    session = _session(graph)
    precise = copy.deepcopy(network).double()
    worst = noise = 0.0
    for batch in BATCHES:
        difference, own = _largest_differences(network, precise, session, _tokens(text, batch))
        worst, noise = max(worst, difference), max(noise, own)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"largest difference in {STEPS} steps is {worst:g}, at most {TOLERANCE:g} is let through; "
            f"the network in float32 differs from itself in float64 by {noise:g}"
        )
    return Parity(STEPS, BATCHES, worst, noise)


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tokens(text: bytes, batch: int) -> NDArray[np.int64]:
    """Returns tokens (STEPS, batch)."""
    source = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = [row * len(source) // batch for row in range(batch)]
    return np.stack([np.resize(source[start:], STEPS) for start in starts], axis=1)


@torch.inference_mode()
def _largest_differences(
    network: StepNetwork,
    precise: StepNetwork,
    session: ort.InferenceSession,
    tokens: NDArray[np.int64],
) -> tuple[float, float]:
    """Returns the largest difference of the graph, and of float64, from the network."""
    ours = network.initial(tokens.shape[1])
    exact = tuple(state.double() for state in ours)
    theirs = [state.numpy() for state in ours]
    worst = noise = 0.0
    for row in tokens:
        expected = network(torch.from_numpy(row), *ours)
        truth = precise(torch.from_numpy(row), *exact)
        feed = dict(zip(network.state_names, theirs, strict=True))
        given = session.run(None, {"token": row, **feed})
        for left, right, middle in zip(expected, given, truth, strict=True):
            worst = max(worst, _difference(left.numpy(), right))
            noise = max(noise, _difference(left.numpy(), middle.numpy()))
        ours, exact, theirs = expected[2:], truth[2:], given[2:]
    return worst, noise


def _difference(expected: NDArray[np.float32], given: NDArray[Any]) -> float:
    scale = np.maximum(1.0, np.abs(expected))
    difference = np.abs(expected - given) / scale
    return float(difference.max()) if np.isfinite(difference).all() else math.inf
