"""The oracle: an uninterrupted onnxruntime run of the same tokens."""

import functools
from pathlib import Path

from holdfast.demo.oracle import run_uninterrupted
from model_export.corpus import join, load_corpus

MODELS = Path(__file__).parents[2] / "models"


def run(name, data):
    """Runs bytes through a shipped model; returns logits (k, 256) and token log-probabilities (k,)."""
    return run_uninterrupted(MODELS / name / "1" / "model.onnx", data)


@functools.cache
def held_out_text():
    """Returns bytes that no shipped network has learned from; reading them takes most of a second."""
    return join(load_corpus().held_out)
