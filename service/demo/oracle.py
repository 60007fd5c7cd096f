"""The uninterrupted run that the demo is judged by, and the memoryless network it is compared with."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


class Uninterrupted(NamedTuple):
    """What a byte network gives when nothing happens to it.

    Attributes:
        logits: float32 (k, 256).
        token_log_probs: float32 (k,), natural logarithm.
    """

    logits: NDArray[np.float32]
    token_log_probs: NDArray[np.float32]


def open_graph(path: Path) -> ort.InferenceSession:
    """Opens a step graph in onnxruntime alone, to run on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of every input with a default
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class ByteNetwork:
    """A shipped step graph with its state, run by onnxruntime alone.

    Args:
        path: The ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_graph(path)
        self._h = np.zeros((1, self._session.get_inputs()[1].shape[1]), np.float32)

    def step(self, byte: int) -> tuple[NDArray[np.float32], float]:
        """Takes one byte; returns the logits of the next one, (256,), and this one's log-probability."""
        feed = {"token": np.array([[byte]], np.int64), "h": self._h}
        logits, log_prob, self._h = self._session.run(["logits", "token_log_prob", "h_next"], feed)
        return logits[0, 0], log_prob[0, 0]


def run_uninterrupted(path: Path, data: bytes) -> Uninterrupted:
    """Runs bytes through a shipped step graph, one after the other."""
    network = ByteNetwork(path)
    steps = [network.step(byte) for byte in data]
    return Uninterrupted(
        np.array([logits for logits, _ in steps]), np.array([log_prob for _, log_prob in steps])
    )
