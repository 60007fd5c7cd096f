"""The parity gate: a step graph leaves only if it computes what the trained network computes.

Both sides run the same tokens and feed back their own states, so that a difference in one step has 500
steps to grow; an exporter that mistakes a gate passes a single step far more easily. The tokens
are real text. The tolerance is absolute up to magnitude 1 and relative above it: near 32 neighbouring
float32 numbers are 4e-6 apart already.
"""

from typing import NamedTuple

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
    """What the gate measured: the largest difference over all outputs and states."""

    steps: int
    batches: tuple[int, ...]
    max_difference: float


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
    worst = max(_largest_difference(network, session, _tokens(text, batch)) for batch in BATCHES)
    if not worst <= TOLERANCE:
        raise ParityError(f"largest difference after {STEPS} steps is {worst:g}, over {TOLERANCE:g}")
    return Parity(STEPS, BATCHES, worst)


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tokens(text: bytes, batch: int) -> NDArray[np.int64]:
    """Returns tokens (STEPS, batch)."""
    source = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = [row * len(source) // batch for row in range(batch)]
    tokens = np.stack([np.resize(source[start:], STEPS) for start in starts], axis=1)
    return tokens


@torch.inference_mode()
def _largest_difference(
    network: StepNetwork, session: ort.InferenceSession, tokens: NDArray[np.int64]
) -> float:
    ours = network.initial(tokens.shape[1])
    theirs = [state.numpy() for state in ours]
    worst = 0.0
    for row in tokens:
        expected = network(torch.from_numpy(row), *ours)
        feed = dict(zip(network.state_names, theirs, strict=True))
        given = session.run(None, {"token": row, **feed})
        for left, right in zip(expected, given, strict=True):
            worst = max(worst, _difference(left.numpy(), right))
        ours, theirs = expected[2:], given[2:]
    return worst


def _difference(expected: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    scale = np.maximum(1.0, np.abs(expected))
    return float((np.abs(expected - given) / scale).max())
