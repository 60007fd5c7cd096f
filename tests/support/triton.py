"""Triton's own client, as it is published; and sequences sent by it."""

import sys
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parents[2] / ".venv" / "tritonclient"
assert _FOLDER.is_dir(), "make test installs it"
sys.path.append(str(_FOLDER))

import tritonclient.grpc as triton  # noqa: E402
import tritonclient.grpc.aio as triton_aio  # noqa: E402
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

__all__ = [
    "InferenceServerException",
    "ids",
    "infer_input",
    "model_config_pb2",
    "service_pb2",
    "service_pb2_grpc",
    "triton",
    "triton_aio",
]


def infer_input(name, array, datatype):
    """Returns an input of the client."""
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def ids(tokens):
    """Returns bytes as the inputs of a model over ids, [1, T]."""
    return [infer_input("token", np.array([list(tokens)], np.int64), "INT64")]
