"""The uninterrupted run that the demo is judged by, and the memoryless network it is compared with."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.verify.oracle import Oracle


class Uninterrupted(NamedTuple):
    """What a byte network gives when nothing happens to it.

    Attributes:
        logits: float32 (k, 256).
        token_log_probs: float32 (k,), natural logarithm.
    """

    logits: NDArray[np.float32]
    token_log_probs: NDArray[np.float32]


class ByteNetwork:
    """A shipped step graph with its state, run by onnxruntime alone.

    Args:
        path: The ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self._oracle = Oracle(path)
        self._state = self._oracle.start()

    def step(self, byte: int) -> tuple[NDArray[np.float32], float]:
        """Takes one byte; returns the logits of the next one, (256,), and this one's log-probability."""
        outputs, self._state = self._oracle.advance(np.array([byte]), self._state)
        return outputs["logits"][0], outputs["token_log_prob"][0]


def run_uninterrupted(path: Path, data: bytes) -> Uninterrupted:
    """Runs bytes through a shipped step graph, one after the other."""
    network = ByteNetwork(path)
    steps = [network.step(byte) for byte in data]
    return Uninterrupted(
        np.array([logits for logits, _ in steps]), np.array([log_prob for _, log_prob in steps])
    )
