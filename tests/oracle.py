"""The oracle: an uninterrupted onnxruntime run of the same tokens."""

from pathlib import Path

from holdfast.demo.oracle import run_uninterrupted

MODELS = Path(__file__).parent.parent / "models"


def run(name, data):
    """Runs bytes through a shipped model; returns logits (k, 256) and token log-probabilities (k,)."""
    return run_uninterrupted(MODELS / name / "1" / "model.onnx", data)
