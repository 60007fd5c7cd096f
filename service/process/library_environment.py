"""What libraries read from the environment when they are imported. Imports none of them."""

import os

_BEST = {
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    "GRPC_VERBOSITY": "NONE",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""gRPC's older polling instead of its event engine: a message is read by the thread that hands it over, and
by no other before. A sixth to a quarter less CPU per step on streams, up to an eighth on unary calls.

No lines of gRPC's core, which have a form of their own and are written by whoever fails a handshake.

No threads of OpenBLAS, of which numpy would start one per core: what is multiplied here is small, and on
busy cores a product that threads share takes up to a hundred times as long, while they wait for each other.

No reports of onnxruntime to its makers, which it sends on Linux too from 1.32 on: who serves other people's
sessions talks to nobody about it."""


def set_library_environment() -> None:
    """Sets what serves best, unless the operator has set something; before the libraries are imported."""
    for name, value in _BEST.items():
        os.environ.setdefault(name, value)
