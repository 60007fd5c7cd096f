"""The parity gate: a step graph leaves only if it computes what the trained network computes.

Both sides run the same real text and feed back their own states, so that a difference in one step has
500 steps to grow; an exporter that mistakes a gate passes a single step far more easily, and is off by
more than 0.1 here. The tolerance is 1e-5, absolute up to magnitude 1 and relative above it: near 32
neighbouring float32 numbers are 4e-6 apart already.

A network with long memory amplifies rounding too, in PyTorch as in onnxruntime. So its own noise is
measured in the same loop, as the difference between the network in float32 and in float64. Two float32
runs, each so far from the truth, may be twice as far apart, and that is allowed.
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
        ParityError: Some difference is above 1e-5 and above twice the network's own noise, or not a number.
    """
    session = _session(graph)
    precise = copy.deepcopy(network).double()
    worst = noise = 0.0
    for batch in BATCHES:
        difference, own = _largest_differences(network, precise, session, _tokens(text, batch))
        worst, noise = max(worst, difference), max(noise, own)
    if not worst <= max(TOLERANCE, 2 * noise):
        raise ParityError(
            f"largest difference after {STEPS} steps is {worst:g}, over {TOLERANCE:g} and over twice "
            f"the network's own float32 noise of {noise:g}"
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
