"""The step graph in Triton's Python backend; the state of each sequence is a row of one array.

Runs inside Triton, in its own environment: it knows numpy, onnxruntime and Triton's utilities, and nothing
of this project.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TOP_K = 5
SWITCHES = {"token_log_prob_wanted": np.array(False)}


class TritonPythonModel:
    """Gives each sequence a row from its start to its end."""

    def initialize(self, arguments):
        """Opens the graph that lies beside this file, on one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        graph = Path(__file__).with_name("step_graph.onnx")
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        batching = json.loads(arguments["model_config"])["sequence_batching"]
        capacity = int(batching["oldest"]["max_candidate_sequences"])
        self._states = np.zeros((capacity, self._session.get_inputs()[1].shape[1]), np.float32)
        self._free = list(range(capacity))
        self._rows = {}

    def execute(self, requests):
        """Takes one token of each request's sequence; all of them run together."""
        rows = [self._row(request) for request in requests]
        tokens = [pb_utils.get_input_tensor_by_name(request, "token").as_numpy() for request in requests]
        feed = {"token": np.concatenate(tokens, axis=1), "h": self._states[rows], **SWITCHES}
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
    """Returns ids and log-probabilities of the likeliest tokens, (B, 5), best first, as Holdfast does."""
    left, rows = logits.copy(), np.arange(len(logits))
    ids = np.empty((len(logits), TOP_K), np.int32)
    for place in range(TOP_K):
        best = left.argmax(axis=1)
        ids[:, place] = best
        left[rows, best] = -np.inf
    values = logits[rows[:, np.newaxis], ids]
    peak = values[:, :1]
    return ids, values - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
