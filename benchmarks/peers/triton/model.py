"""The step graph in Triton's Python backend, the state of every sequence in this process's memory.

Runs inside Triton, in its own environment: it knows numpy, onnxruntime and Triton's utilities, and nothing
of this project.
"""

import json

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TOP_K = 5


class TritonPythonModel:
    """Gives each sequence a row of one array from its start to its end."""

    def initialize(self, arguments):
        """Opens the graph named in the configuration, on one thread."""
        parameters = json.loads(arguments["model_config"])["parameters"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = parameters["step_graph"]["string_value"]
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        capacity = int(parameters["capacity"]["string_value"])
        self._states = np.zeros((capacity, self._session.get_inputs()[1].shape[1]), np.float32)
        self._free = list(range(capacity))
        self._rows = {}

    def execute(self, requests):
        """Takes one token of each request's sequence; all of them run together."""
        rows = [self._row(request) for request in requests]
        tokens = [pb_utils.get_input_tensor_by_name(request, "token").as_numpy()[0, 0] for request in requests]
        feed = {"token": np.array(tokens, np.int64)[np.newaxis], "h": self._states[rows]}
        logits, self._states[rows] = self._session.run(["logits", "h_next"], feed)
        ids, log_probs = top_candidates(logits[0])
        for request in requests:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self._free.append(self._rows.pop(request.correlation_id()))
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("top_ids", ids[index : index + 1]),
                    pb_utils.Tensor("top_log_probs", log_probs[index : index + 1]),
                ]
            )
            for index in range(len(requests))
        ]

    def _row(self, request):
        sequence = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            if sequence not in self._rows:
                self._rows[sequence] = self._free.pop()
            self._states[self._rows[sequence]] = 0
        return self._rows[sequence]


def top_candidates(logits):
    """Returns ids and log-probabilities of the likeliest tokens of each row, best first, as Holdfast does."""
    rest = logits.copy()
    rows = np.arange(len(rest))
    ids = np.empty((len(rest), TOP_K), np.int32)
    for rank in range(TOP_K):
        ids[:, rank] = rest.argmax(axis=1)
        rest[rows, ids[:, rank]] = -np.inf
    best = logits[rows[:, np.newaxis], ids]
    shifted = logits - best[:, :1]
    return ids, best - best[:, :1] - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
