"""The oracle: one row of a step graph with its state, run without a break by nobody else. Any model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.verify.session_history import Outputs
from service.model.contract import Contract, OutputSpec
from service.model.files import fingerprint_of, read_model
from service.model.loading import load_model
from service.model.trial import NotIndependent, try_out
from service.model.trial_runs import TrialFailed

TOKENS_PER_CALL = 256
"""Also between the states that a run keeps."""


class Oracle:
    """Implements `network.Network` on a file.

    Args:
        path: The ONNX file.
        apart: What of a batch the server runs apart, beside what the file says of itself.

    Attributes:
        fingerprint: sha256 of the file.
        contract: Its tensors.
        found_dependence: What `dependence` has found.
    """

    def __init__(self, path: Path, apart: frozenset[str] = frozenset()) -> None:
        self._path, self._apart = path, apart
        self._is_tried = False
        self.found_dependence: str | None = None
        data = read_model(path)
        self.fingerprint = fingerprint_of(data)
        self._graph = load_model(path, name="", version=1, data=data, apart=apart)
        self.contract: Contract = self._graph.contract
        # what is given once a run is then given after every token
        self._tokens_per_call = (
            1 if any(output.is_last for output in self.contract.outputs) else TOKENS_PER_CALL
        )

    def start(self) -> dict[str, NDArray[Any]]:
        """Returns the initial state by name, without a batch axis."""
        return {spec.name: spec.initial_array for spec in self.contract.states}

    def advance(
        self, tokens: NDArray[Any], state: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Runs tokens (k,) or (k, width).

        Returns:
            Outputs (k, ...) and the next state, by name.
        """
        size = self._tokens_per_call
        collected: dict[str, list[NDArray[Any]]] = {output.name: [] for output in self.contract.outputs}
        for start in range(0, len(tokens), size):
            outputs, state = self._call(tokens[start : start + size], state)
            for name, array in outputs.items():
                collected[name].append(array)
        return {name: np.concatenate(parts) for name, parts in collected.items()}, dict(state)

    def run(self, tokens: NDArray[Any], initial: Mapping[str, NDArray[Any]] | None) -> "OracleRun":
        """See `network.Network`; of an opening that gives some tensors the others are the model's own."""
        given = {} if initial is None else initial
        taken = {
            spec.name: spec.taken(given[spec.name]) for spec in self.contract.states if spec.name in given
        }
        return OracleRun(self, tokens, self.start() | taken)

    def dependence(self, tokens: NDArray[Any]) -> str | None:
        """See `network.Network`; tried on the first tokens asked for, then on drawn ones."""
        if not self._is_tried:
            self._is_tried = True
            self.found_dependence = self._find_dependence(tokens)
        return self.found_dependence

    def _find_dependence(self, tokens: NDArray[Any]) -> str | None:
        for given in (tokens, None):
            try:
                try_out(self._graph, self._path.read_bytes(), given=given)
            except NotIndependent as error:
                return str(error)
            except TrialFailed:
                continue  # it does not run as its contract says, which explains no output
        return None

    def _call(
        self, tokens: NDArray[Any], state: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        outputs, after = self._graph.run(
            tokens.astype(self.contract.input.dtype)[:, np.newaxis],
            {name: array[np.newaxis] for name, array in state.items()},
        )
        return {name: array[:, 0] for name, array in outputs.items()}, {
            name: array[0] for name, array in after.items()
        }


class OracleRun:
    """Implements `network.Run`."""

    def __init__(self, oracle: Oracle, tokens: NDArray[Any], initial: Mapping[str, NDArray[Any]]) -> None:
        self._oracle = oracle
        self._tokens = tokens
        self._states = [dict(initial)]
        collected: dict[str, list[NDArray[Any]]] = {output.name: [] for output in oracle.contract.outputs}
        for start in range(0, len(tokens), TOKENS_PER_CALL):
            outputs, state = oracle.advance(tokens[start : start + TOKENS_PER_CALL], self._states[-1])
            self._states.append(state)
            for name, array in outputs.items():
                collected[name].append(array)
        self._outputs = {name: np.concatenate(parts) for name, parts in collected.items()}

    def differences(self, start: int, outputs: Outputs) -> float:
        """See `network.Run`."""
        part = slice(start, start + outputs.token_count)
        worst = [0.0]
        contract = self._oracle.contract
        surprise, ranked = contract.token_log_prob, contract.ranked
        expected = {
            spec.name: self._outputs[spec.name][part.stop - 1 : part.stop]
            if spec.is_last
            else self._outputs[spec.name][part]
            for spec in contract.outputs
        }
        if outputs.token_log_probs is not None and surprise is not None:
            worst.append(difference(outputs.token_log_probs, expected[surprise.name]))
        if outputs.top_ids is not None and outputs.top_log_probs is not None and ranked is not None:
            log_probs = _log_probs(_alike(expected[ranked.name], outputs.top_ids), ranked)
            best = -np.sort(-log_probs, axis=1)[:, : outputs.top_ids.shape[1]]
            worst.append(difference(outputs.top_log_probs, best))
            worst.append(difference(np.take_along_axis(log_probs, outputs.top_ids, 1), best))
        worst += [
            difference(array, _alike(expected[name], array)) for name, array in outputs.tensors.items()
        ]
        if outputs.state:
            state = self.state_after(part.stop)
            worst += [difference(array, state[name]) for name, array in outputs.state.items()]
        return max(worst)

    def state_after(self, count: int) -> Mapping[str, NDArray[Any]]:
        """See `network.Run`."""
        kept, rest = divmod(count, TOKENS_PER_CALL)
        if not rest:
            return self._states[kept]
        return self._oracle.advance(self._tokens[count - rest : count], self._states[kept])[1]


def _alike(expected: NDArray[Any], given: NDArray[Any]) -> NDArray[Any]:
    """Returns what is expected of the last token alone where a reply shows no more, as in a generation."""
    return expected[-1:] if len(given) == 1 else expected


def difference(given: NDArray[Any], expected: NDArray[Any]) -> float:
    """Returns the largest difference, absolute up to magnitude 1 and relative above; infinite for NaN.

    Of integers and bools there is no nearly: they are the same, or infinitely far apart.
    """
    if given.shape != expected.shape:
        return float("inf")
    if not given.size:
        return 0.0
    if expected.dtype.kind in "biu":
        return 0.0 if np.array_equal(given, expected) else float("inf")
    found = float((np.abs(given.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))).max())
    return float("inf") if math.isnan(found) else found


def _log_probs(values: NDArray[Any], spec: OutputSpec) -> NDArray[np.float64]:
    """Returns the log-probabilities (k, classes) that an output stands for by its role."""
    wide: NDArray[np.float64] = values.reshape(len(values), -1).astype(np.float64)
    if spec.role == "log_probs":
        return wide
    if spec.role == "probs":
        with np.errstate(divide="ignore"):
            log_probs: NDArray[np.float64] = np.log(wide)
        return log_probs
    shifted = wide - wide.max(axis=1, keepdims=True)
    softmax: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return softmax
