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


def run_uninterrupted(path: Path, data: bytes) -> Uninterrupted:
    """Runs bytes through a shipped step graph, one after the other, with onnxruntime alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    h = np.zeros((1, session.get_inputs()[1].shape[1]), np.float32)
    logits, log_probs = [], []
    for byte in data:
        feed = {"token": np.array([byte], np.int64), "h": h}
        step_logits, log_prob, h = session.run(["logits", "token_log_prob", "h_next"], feed)
        logits.append(step_logits[0])
        log_probs.append(log_prob[0])
    return Uninterrupted(np.array(logits), np.array(log_probs))
