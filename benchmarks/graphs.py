"""Opens a step graph in onnxruntime alone: the ceiling of what serves it."""

from pathlib import Path

import onnxruntime as ort


def open_graph(path: Path) -> ort.InferenceSession:
    """Opens a step graph to run on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of every input with a default
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
