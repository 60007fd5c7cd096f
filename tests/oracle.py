"""The oracle: an uninterrupted onnxruntime run of the same tokens."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

MODELS = Path(__file__).parent.parent / "models"


def run(name, data):
    """Runs bytes through a shipped model; returns logits (k, 256) and token log-probabilities (k,)."""
    session = ort.InferenceSession(MODELS / name / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    h = np.zeros((1, 256), np.float32)
    logits, log_probs = [], []
    for byte in data:
        feed = {"token": np.array([byte], np.int64), "h": h}
        step_logits, log_prob, h = session.run(["logits", "token_log_prob", "h_next"], feed)
        logits.append(step_logits[0])
        log_probs.append(log_prob[0])
    return np.array(logits), np.array(log_probs)
