"""The parity gate of networks over anything: what `parity` is for byte networks.

Torch takes one token at a time and feeds back its state; the graph takes chunks and feeds back its own, so
that a difference in one step has 500 steps to grow. An output that belongs to the last token of a run is
compared there.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.parity import BATCHES, STEPS, TOLERANCE, Parity, ParityError, difference, open_session
from model_export.recurrent import Recurrent

TOKENS_PER_CALL = (1, 7, 64)

Outputs = Callable[[Tensor], Mapping[str, Tensor]]
"""Logits (T, B, classes) -> what the graph gives, by name, each (T, B, ...)."""


def check(
    network: Recurrent,
    graph: bytes,
    tokens: NDArray[Any],
    outputs: Outputs,
    *,
    of_last_token: Sequence[str] = (),
) -> Parity:
    """Compares a network with its step graph.

    Args:
        network: In evaluation mode.
        graph: The serialised step graph; its first input takes tokens, its second the state.
        tokens: (time, rows, ...), at least 500 tokens of at least 64 rows.
        outputs: What the graph makes of the logits.
        of_last_token: Outputs without a time axis.

    Raises:
        ParityError: Some difference is above 1e-5, or not a number.
    """
    session = open_session(graph)
    precise = copy.deepcopy(network).double()
    worst = noise = 0.0
    for batch in BATCHES:
        given = tokens[:STEPS, :batch]
        expected = _run_network(network, given, outputs)
        exact = _run_network(precise, given, outputs)
        noise = max([noise, *(difference([exact[name]], [expected[name]]) for name in exact)])
        for count in TOKENS_PER_CALL:
            worst = max(worst, _run_graph(session, given, count, expected, of_last_token))
    if not worst <= TOLERANCE:
        raise ParityError(
            f"largest difference in {STEPS} steps is {worst:g}, at most {TOLERANCE:g} is let through; "
            f"the network in float32 differs from itself in float64 by {noise:g}"
        )
    return Parity(STEPS, BATCHES, TOKENS_PER_CALL, worst, noise)


@torch.inference_mode()
def _run_network(network: Recurrent, tokens: NDArray[Any], outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Returns outputs and state after every token, by name, time first."""
    h = network.initial(tokens.shape[1])
    collected: dict[str, list[NDArray[Any]]] = {}
    for row in tokens:
        token = torch.from_numpy(row[np.newaxis])
        logits, h = network(token.to(h.dtype) if token.is_floating_point() else token, h)
        for name, value in {**outputs(logits), "h_next": h}.items():
            collected.setdefault(name, []).append(value.numpy() if name == "h_next" else value[0].numpy())
    return {name: np.stack(values) for name, values in collected.items()}


def _run_graph(
    session: ort.InferenceSession,
    tokens: NDArray[Any],
    count: int,
    expected: Mapping[str, NDArray[Any]],
    of_last_token: Sequence[str],
) -> float:
    """Returns the largest difference of the graph, called with `count` tokens at a time."""
    token_input, state_input = (node.name for node in session.get_inputs())
    names = [node.name for node in session.get_outputs()]
    h = np.zeros(expected["h_next"].shape[1:], np.float32)
    worst = 0.0
    for start in range(0, len(tokens), count):
        part = tokens[start : start + count]
        given = dict(zip(names, session.run(None, {token_input: part, state_input: h}), strict=True))
        h = given["h_next"]
        stop = start + len(part)
        for name, value in given.items():
            if name == "h_next" or name in of_last_token:
                worst = max(worst, difference([expected[name][stop - 1 : stop]], [value[np.newaxis]]))
            else:
                worst = max(worst, difference([expected[name][start:stop]], [value]))
    return worst
