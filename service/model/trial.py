"""Tries a step graph: does a session get what its own tokens say, and nothing else?

A server runs sessions in batches and cuts their tokens into chunks as the load has it, and a retry or a
replica must give what the first run would have given. So neither may be seen in any output or state. The
truth is a row alone, one token at a time; it is compared with

    the same again       a graph that draws random numbers gives something else
    chunks of tokens     a graph that looks ahead, or normalises over time, gives something else
    rows in a batch      a graph that normalises over the batch gives something else, above all where the
                         others' values are large
    fewer outputs        a switch that switches off more than its output gives something else

What is only rounding is told apart by doing it again from inputs that differ in their last places. A graph
may depend on others for one token in a thousand, or in batches of 200: that no trial finds. Starts no
thread and opens no file.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.model.contract import opening_rows
from service.model.protocol import Model
from service.model.trial_ahead import looks_ahead
from service.model.trial_inputs import LEAST_ROWS, Sample, draw, fits, has_sizes, nudged
from service.model.trial_roles import wrong_role
from service.model.trial_runs import (
    Case,
    Kind,
    Result,
    Runs,
    StepFailed,
    TrialFailed,
    distances,
    middle,
    output_in_words,
    run,
    short,
)
from service.model.trial_words import LOOKS_AHEAD, likely_cause, remedy

FIRST = ((1, 1), (2, 3))
"""Tokens and rows of the steps that are tried first, on zeros."""

TOLERANCE = 1e-5
TOLERANCE_FLOAT16 = 2e-3
"""Where any output or state is of float16. Both relative to the size of the tensor."""

ROWS = (2, 3, 8, 64)
SCALES = (1.0, 20.0, 1e3, 1e30)
"""So many times as large are the values of the others; the last one has squares overflow."""

CHUNK, LONG_CHUNK = 7, 32
"""The first one is also cut in two at every place."""

NUDGES = (1.0, 1e2, 1e4)
"""Last places by which inputs are changed to tell rounding. The large ones are for a graph that rounds
coarsely inside: its inputs have to be quite others before it rounds otherwise."""

AMPLIFIED = 10.0
"""A difference so many times what one last place of the inputs makes is no rounding."""

SMALL = 8
"""Cases of so many tokens in all are tried in any case."""

MAX_ASKED = 8
"""Outputs that are asked for alone."""


_APART: tuple[Kind, ...] = ("rows", "tokens")
"""What can run apart."""


class NotIndependent(TrialFailed):
    """What the graph gives a session depends on more than its own tokens and state.

    Attributes:
        apart: What has to run apart so that it does not; empty if nothing helps.
    """

    def __init__(self, message: str, apart: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.apart = tuple(apart)


class _Difference(NamedTuple):
    """The largest of its kind."""

    case: Case
    tensor: str
    size: float


def try_out(
    model: Model,
    data: bytes = b"",
    *,
    given: NDArray[Any] | None = None,
    is_time_left: Callable[[], bool] = lambda: True,
) -> dict[Kind, float]:
    """Tries a graph as the server runs it.

    Args:
        model: The graph; rows and tokens that are to run apart do.
        data: Its file, to name the operator that is the likely cause.
        given: Tokens to try it on instead of drawn ones, (n,) or (n, width).
        is_time_left: Asked before each of the larger cases, which come last.

    Returns:
        The largest difference that was found of each kind that was tried, relative to its tensor's size.

    Raises:
        TrialFailed: It is not to be served.
    """
    contract = model.contract
    for token_count, row_count in FIRST:
        features = () if contract.input.kind == "token_id" else (contract.input.width,)
        tokens = np.zeros((token_count, row_count, *features), contract.input.dtype)
        run(model, tokens, opening_rows(contract, row_count))
    try:
        sample = draw(model, given)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
        raise StepFailed(f"a step of drawn tokens fails: {error}") from None
    return _Trial(model, sample, data, is_time_left).judge()


class _Trial:
    """Compares what rows get in different company and in different chunks."""

    def __init__(self, model: Model, sample: Sample, data: bytes, is_time_left: Callable[[], bool]) -> None:
        self._model = model
        self._contract = model.contract
        self._data = data
        self._is_time_left = is_time_left
        self._runs = Runs(model, sample)
        self._found: dict[Kind, _Difference] = {}
        self._largest: dict[Kind, float] = {}

    def judge(self) -> dict[Kind, float]:
        """Raises what is wrong, if anything is; else returns the largest differences."""
        with np.errstate(all="ignore"):
            self._repeat()
            self._hold_roles()
            self._leave_out()
            for case in self._cases():
                if case.row_count * case.token_count <= SMALL or self._is_time_left():
                    self._compare(case)
        if self._found:
            if "tokens" in self._found and self._looks_ahead(self._found["tokens"].case):
                raise NotIndependent(self._words(["tokens"], LOOKS_AHEAD))
            kinds = [kind for kind in _APART if kind in self._found] or ["mixed"]
            raise NotIndependent(self._words(kinds, remedy(self._apart())), self._apart())
        return self._largest

    def _repeat(self) -> None:
        """Runs the same twice: onnxruntime on one thread gives the same bits."""
        for token_count, row_count in FIRST:
            once, again = (self._runs.at_once(row_count, token_count) for _ in range(2))
            for name, array in once.items():
                if not np.array_equal(array, again[name], equal_nan=array.dtype.kind == "f"):
                    cause = likely_cause(self._data, "random")
                    raise NotIndependent(
                        f"{name} differs in two runs on the same tokens and state, so that no retry and no "
                        f"replica repeats a reply; export it for inference; {cause}"
                    )

    def _hold_roles(self) -> None:
        """Holds logits, probabilities and their logarithms against what such values are."""
        given = self._runs.at_once(LEAST_ROWS, 1)
        for spec in self._contract.outputs:
            rows = given[output_in_words(spec)].reshape(LEAST_ROWS, -1).astype(np.float64)
            if not np.isfinite(rows).all():
                if not np.isfinite(rows).any() or np.isnan(rows).all():
                    raise TrialFailed(f"{output_in_words(spec)} is not finite, whatever the token")
                continue
            if (found := wrong_role(spec.role, rows)) is not None:
                raise TrialFailed(f"{output_in_words(spec)} is declared as {spec.role}, {found}")

    def _leave_out(self) -> None:
        """Asks for no output, and for one at a time: what a batch asks for is up to others as well."""
        every = self._runs.at_once(2, 1)
        for needed in ((), *((output.name,) for output in self._contract.outputs[:MAX_ASKED])):
            some = self._runs.at_once(2, 1, needed)
            for name, sizes in distances(some, every).items():
                if sizes.max() > self._tolerance(every[name]):
                    asked = f"only {short(needed[0])}" if needed else "no output"
                    raise NotIndependent(
                        f"{name} differs by {sizes.max():.2g} when {asked} is asked for; a switch must "
                        "spare its own output and change nothing else"
                    )

    def _cases(self) -> list[Case]:
        """Returns those that are small enough, the smallest first."""
        scales = SCALES if has_sizes(self._contract) else SCALES[:1]
        cases = [
            Case("rows", row_count, (1,), scale, is_behind=number % 2 == 1)
            for row_count in ROWS
            for number, scale in enumerate(scales)
        ]
        if self._contract.input.has_time_axis or any(part.context for part in self._contract.graph_inputs):
            wholes = ((2,), (CHUNK,), (CHUNK,), (LONG_CHUNK,))
            cases += [Case("tokens", 1, cuts, first=row % 2) for row, cuts in enumerate(wholes)]
            cases += [Case("tokens", 1, (cut, CHUNK - cut)) for cut in range(1, CHUNK)]
            cases += [
                Case("mixed", row_count, (token_count,), scale)
                for row_count, token_count in ((3, 2), (8, CHUNK), (ROWS[-1], CHUNK))
                for scale in scales[::2]
            ]
        fitting = [case for case in cases if fits(self._contract, case.row_count, case.token_count)]
        return sorted(fitting, key=lambda case: case.row_count * case.token_count)

    def _compare(self, case: Case) -> None:
        try:
            expected = self._runs.expected(case)
        except StepFailed:
            if self._contract.input.kind == "token_id":
                raise
            return  # what its features stand for is not known
        try:
            given = self._runs.given(case)
        except StepFailed:
            if case.scale == 1.0:
                raise
            return  # such values are none that the graph takes
        for name, sizes in distances(given, expected).items():
            tolerance = self._tolerance(given[name])
            if sizes.max() > tolerance and case.kind not in self._found:
                sizes = self._beyond_rounding(case, name, sizes, expected)
            size = float(sizes.max())
            self._largest[case.kind] = max(size, self._largest.get(case.kind, 0.0))
            if size > max(tolerance, self._found[case.kind].size if case.kind in self._found else 0.0):
                self._found[case.kind] = _Difference(case, name, size)

    def _beyond_rounding(
        self, case: Case, name: str, sizes: NDArray[np.float64], expected: Result
    ) -> NDArray[np.float64]:
        """Returns the differences that stay when inputs change in their last places; others are 0.

        Where a value is near a threshold, rounding decides what follows, and decides otherwise from inputs
        a little different. Where a network amplifies, what rounding has made grows no faster than what a
        last place of the inputs makes.
        """
        moved = []
        for number, ulps in enumerate((*NUDGES, NUDGES[0], NUDGES[0])):
            runs = Runs(self._model, nudged(self._runs.sample, ulps, number))
            try:
                alone = runs.expected(case)
                sizes = np.minimum(sizes, distances(runs.given(case), alone)[name])
            except StepFailed:
                continue
            if ulps == NUDGES[0]:
                moved.append(distances(alone, expected)[name])
        usual = middle(np.array(moved))[0] if moved else np.zeros_like(sizes)
        return np.where(sizes > AMPLIFIED * usual, sizes, 0.0)

    def _tolerance(self, array: NDArray[Any]) -> float:
        if array.dtype.kind != "f":
            return 0.0
        dtypes = [spec.dtype for spec in self._contract.states]
        dtypes += [spec.dtype for spec in self._contract.outputs]
        is_coarse = any(dtype == np.float16 for dtype in dtypes)
        return TOLERANCE_FLOAT16 if is_coarse else TOLERANCE

    def _looks_ahead(self, case: Case) -> bool:
        sample = self._runs.sample
        return looks_ahead(self._model, sample, self._data, case.token_count, self._tolerance)

    def _words(self, kinds: Sequence[Kind], advice: str) -> str:
        """Returns what was found, what can be done, and the likely cause."""
        found = "; and on ".join(self._phrase(self._found[kind]) for kind in kinds)
        causes = dict.fromkeys(likely_cause(self._data, kind) for kind in kinds)
        return f"what a session gets depends on {found}; {advice}; {', '.join(causes)}"

    def _apart(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in _APART if kind in self._found) or _APART[:1]

    def _phrase(self, found: _Difference) -> str:
        case, name, size = found
        differs = f"{name} differs by {size:.2g}" if np.isfinite(size) else f"{name} is not finite"
        times = f", {case.scale:g} times as large" if case.scale != 1.0 else ""
        beside = f"beside {case.row_count - 1} other{'s' if case.row_count > 2 else ''}{times}"
        if case.kind == "rows":
            return f"the others of its batch: {differs} {beside}"
        if case.kind == "tokens":
            return f"how its tokens are divided: {differs} in {_chunks(case.cuts)}"
        return f"the others' tokens: {differs} in {_chunks(case.cuts)} {beside}"


def _chunks(cuts: tuple[int, ...]) -> str:
    return (
        f"one chunk of {cuts[0]} tokens" if len(cuts) == 1 else f"chunks of {cuts[0]} and {cuts[1]} tokens"
    )
