"""Runs rows of a sample, alone or together, and measures how far two results are apart."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Contract, OutputSpec
from service.model.protocol import Arrays, Model
from service.model.trial_inputs import Sample, loud

WATCHED_IN_TIME = 3
"""Most rows watched over several tokens, since alone they cost a run per token."""

Kind = Literal["rows", "tokens", "mixed"]
Result = dict[str, NDArray[Any]]
"""Tensor, in words -> (W, T, ...) for an output, (W, ...) for a state, of W rows."""

_OUTPUT, _STATE = "output", "state"
_MAX_NAME_CHARS = 40


class TrialFailed(Exception):
    """A step of the graph fails, or gives what its contract does not say; the message says what."""


class StepFailed(TrialFailed):
    """onnxruntime raised."""


class Case(NamedTuple):
    """A run that must give its watched rows what they get alone, one token at a time.

    Attributes:
        kind: What is wrong if it does not.
        row_count: Rows in the batch.
        cuts: Lengths of the chunks, one run each.
        scale: Of the values of the rows that are not watched.
        first: Which row of the sample is the first of the watched ones.
        is_behind: The watched rows are counted from the end of the batch.
    """

    kind: Kind
    row_count: int
    cuts: tuple[int, ...]
    scale: float = 1.0
    first: int = 0
    is_behind: bool = False

    @property
    def token_count(self) -> int:
        """Tokens of each row, in all chunks."""
        return sum(self.cuts)


class Runs:
    """Runs rows of a sample; what they get alone is remembered.

    Attributes:
        sample: See there.
    """

    def __init__(self, model: Model, sample: Sample) -> None:
        self.sample = sample
        self._model = model
        outputs = model.contract.outputs
        self._last = frozenset(output_in_words(spec) for spec in outputs if spec.is_last)
        self._alone: dict[int, tuple[list[Result], Arrays]] = {}

    def expected(self, case: Case) -> Result:
        """Returns what the watched rows of a case get alone, one token at a time.

        Raises:
            TrialFailed: A step does not go as promised.
        """
        rows = [_joined(self._steps(row, case.token_count), self._last) for row in self._watched(case)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def given(self, case: Case) -> Result:
        """Returns what they get in the case.

        Raises:
            TrialFailed: A step does not go as promised.
        """
        sample, watched = self.sample, self._watched(case)
        other_count = sample.tokens.shape[1] - sample.watched_count
        others = [
            sample.watched_count + number % other_count for number in range(case.row_count - len(watched))
        ]
        apart = max(1, (case.row_count - 1) // max(1, len(watched) - 1))
        places = [row * apart for row in range(len(watched))]
        if case.is_behind:
            places = [case.row_count - 1 - place for place in places]
        rest = [place for place in range(case.row_count) if place not in places]
        order = np.argsort([*places, *rest])
        my_tokens, my_states = loud(sample, watched, 1.0)
        their_tokens, their_states = loud(sample, others, case.scale)
        tokens = np.concatenate([my_tokens, their_tokens], axis=1)[:, order]
        states: Arrays = {
            name: np.concatenate([array, their_states[name]])[order] for name, array in my_states.items()
        }
        parts, start = [], 0
        for cut in case.cuts:
            part, states = run(self._model, tokens[start : start + cut], states)
            parts.append(part)
            start += cut
        return {name: array[places] for name, array in _joined(parts, self._last).items()}

    def at_once(self, row_count: int, token_count: int, needed: tuple[str, ...] | None = None) -> Result:
        """Returns what the first rows get in one run.

        Raises:
            TrialFailed: The step does not go as promised.
        """
        tokens, states = loud(self.sample, range(row_count), 1.0)
        return run(self._model, tokens[:token_count], states, needed)[0]

    def _watched(self, case: Case) -> list[int]:
        most = self.sample.watched_count if case.kind == "rows" else WATCHED_IN_TIME
        return list(range(case.first, case.first + min(most, max(1, case.row_count // 2))))

    def _steps(self, row: int, count: int) -> list[Result]:
        """Returns what each of the first tokens gives a row that is alone."""
        steps, states = self._alone.get(row) or ([], loud(self.sample, [row], 1.0)[1])
        for place in range(len(steps), count):
            step, states = run(self._model, self.sample.tokens[place : place + 1, [row]], states)
            steps.append(step)
        self._alone[row] = steps, states
        return steps[:count]


def run(
    model: Model, tokens: NDArray[Any], states: Arrays, needed: tuple[str, ...] | None = None
) -> tuple[Result, Arrays]:
    """Runs a step and compares what it gives with the contract.

    Returns:
        All that it gives, and the next states by name.

    Raises:
        TrialFailed: It raises, or gives what the contract does not say.
        MemoryError: As it is.
    """
    token_count, row_count = tokens.shape[:2]
    try:
        outputs, after = model.run(tokens, states, needed)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
        raise StepFailed(f"a step of {token_count} tokens in {row_count} rows fails: {error}") from None
    found = {f"{_OUTPUT} {short(name)}": array for name, array in outputs.items()}
    found |= {f"{_STATE} {short(name)}": array for name, array in after.items()}
    promised = _promised(model.contract, token_count, row_count)
    for name, array in found.items():
        if (array.shape, array.dtype) != promised[name]:
            raise TrialFailed(
                f"a step gives {name} as {array.dtype} {array.shape}, its contract says "
                f"{promised[name][1]} {promised[name][0]}{_growth(name, array.shape, promised[name][0])}"
            )
    return {
        name: array.swapaxes(0, 1) if name.startswith(_OUTPUT) else array for name, array in found.items()
    }, after


def _growth(name: str, found: tuple[int, ...], promised: tuple[int, ...]) -> str:
    """Returns what is to be done about a state that becomes longer; "" for anything else."""
    is_state = name.startswith(_STATE) and len(found) == len(promised)
    if not is_state or not any(extent > said for extent, said in zip(found, promised, strict=True)):
        return ""
    return (
        "; a state that grows with its tokens cannot be kept: export it as a ring buffer of fixed length, "
        "with a counter that says where it begins"
    )


def distances(given: Result, expected: Result) -> dict[str, NDArray[np.float64]]:
    """Returns how far each row of each tensor is from what is expected, (W,).

    Relative to the largest value of the row, or of a usual row if that is larger; infinite where one is a
    number and the other is not. Integers and bools are as far apart as they are.
    """
    return {name: _distance(array, expected[name]) for name, array in given.items()}


def middle(values: NDArray[Any]) -> NDArray[Any]:
    """Returns the median along the first axis, as one entry; numpy's own opens files when it is called."""
    ordered: NDArray[Any] = np.sort(values, axis=0)
    return ordered[len(ordered) // 2 : len(ordered) // 2 + 1]


def output_in_words(spec: OutputSpec) -> str:
    """Returns what results and messages call an output."""
    return f"{_OUTPUT} {short(spec.name)}"


def short(name: str) -> str:
    """Returns a tensor's name for a message."""
    return repr(name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}...")


def _distance(given: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    wide, exact = (array.reshape(len(array), -1).astype(np.float64) for array in (given, expected))
    same = (wide == exact) | (np.isnan(wide) & np.isnan(exact))
    apart = np.where(same, 0.0, np.abs(wide - exact))
    farthest: NDArray[np.float64] = np.where(np.isnan(apart), np.inf, apart).max(axis=1, initial=0.0)
    if given.dtype.kind != "f":
        return farthest
    largest = np.where(np.isfinite(exact), np.abs(exact), 0.0).max(axis=1, initial=0.0)
    size = np.maximum(largest, middle(largest))
    return farthest / np.where(size > 0, size, 1.0)


def _joined(parts: Sequence[Result], last: frozenset[str]) -> Result:
    """Joins what runs in a row gave: outputs one after the other; of states and of `last` the last."""
    return {
        name: np.concatenate([part[name] for part in parts], axis=1)
        if name.startswith(_OUTPUT) and name not in last
        else parts[-1][name]
        for name in parts[0]
    }


def _promised(
    contract: Contract, token_count: int, row_count: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {
        **{
            output_in_words(spec): (
                (1 if spec.is_last else token_count, row_count, *spec.shape),
                spec.dtype,
            )
            for spec in contract.outputs
        },
        **{
            f"{_STATE} {short(spec.name)}": ((row_count, *spec.shape), spec.dtype)
            for spec in contract.states
        },
    }
