"""Draws the token that follows a chunk, from what its model gave after the last token. Pure.

The random number at a position is a function of the seed and that position, so whoever draws again, on
another replica or after a restart, draws the same token from the same numbers. What is drawn goes by the
order of ids and not by that of likelihood: two tokens that change their ranks by a rounding error change
nothing else.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NOTHING = -1
"""Stands for the token where none has a probability: every number is NaN or minus infinity."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)
_BITS_DROPPED = np.uint64(11)  # a float64 holds 53 of the 64


class Options(NamedTuple):
    """How to choose; filters apply in the order of these fields.

    Attributes:
        penalty: A positive logit of an id that was said is divided by it, a negative one multiplied; > 0.
        temperature: Divides the logits; 0 takes the likeliest token, of equal ones the smallest id.
        top_k: Only so many likeliest tokens, of equal ones those with the smallest ids; 0 is all.
        top_p: Only the likeliest tokens that together reach this probability; in (0, 1].
        min_p: Only tokens at least this probable in proportion to the likeliest; in [0, 1].
    """

    penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Sample(NamedTuple):
    """What is to be drawn after one chunk.

    Attributes:
        options: How.
        seed: Of the random numbers, 0 .. 2^63 - 1.
        said: Ids that the penalty is about.
        excluded: Ids that are not drawn.
    """

    options: Options = Options()
    seed: int = 0
    said: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()


class Drawn(NamedTuple):
    """Tokens of N rows.

    Attributes:
        ids: int32 (N,); `NOTHING` where no token has a probability.
        log_probs: Under the model, before all options, float32 (N,); NaN where nothing was drawn.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]


def draw(values: NDArray[Any], role: str, samples: Sequence[Sample], positions: NDArray[np.int64]) -> Drawn:
    """Draws a token for each row.

    Args:
        values: What the model gave after the last token of each row, (N, V).
        role: Of that output, one of `RANKED`.
        samples: What to draw for each row.
        positions: Tokens before the one that is drawn, (N,).
    """
    logits = as_logits(values, role)
    log_probs = log_softmax(logits)
    ids = np.empty(len(logits), np.int32)
    for options, rows in _alike(samples).items():
        part = logits[rows]
        _penalise(part, options.penalty, [samples[row].said for row in rows])
        for place, row in enumerate(rows):
            if samples[row].excluded:
                part[place, list(samples[row].excluded)] = -np.inf
        seeds = np.array([samples[row].seed for row in rows], np.uint64)
        ids[rows] = _choose(part, options, uniform(seeds, positions[rows]))
    chosen = log_probs[np.arange(len(ids)), ids].astype(np.float32)
    chosen[ids == NOTHING] = np.nan
    return Drawn(ids, chosen)


def as_logits(values: NDArray[Any], role: str) -> NDArray[np.float64]:
    """Returns logits, (N, V), of an output with a role of `RANKED`; a NaN is minus infinity."""
    logits = values.reshape(len(values), -1).astype(np.float64)
    if role == "probs":
        with np.errstate(divide="ignore", invalid="ignore"):  # a probability of 0, or none
            logits = np.log(logits)
    logits[np.isnan(logits)] = -np.inf
    return logits


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns log-probabilities, (N, V)."""
    shifted = _below_peak(logits)
    with np.errstate(divide="ignore"):
        normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each seed and position: splitmix64 of both, 53 bits."""
    with np.errstate(over="ignore"):  # modulo 2^64
        mixed = _mix(_mix(seeds + _STEP) + positions.astype(np.uint64) * _STEP)
    numbers: NDArray[np.float64] = (mixed >> _BITS_DROPPED) * np.float64(2.0**-53)
    return numbers


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in _MIXERS:
        numbers = (numbers ^ (numbers >> shift)) * factor
    return numbers ^ (numbers >> _LAST_SHIFT)


def _alike(samples: Sequence[Sample]) -> dict[Options, list[int]]:
    """Returns which rows have which options."""
    rows: dict[Options, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.options, []).append(row)
    return rows


def _penalise(logits: NDArray[np.float64], penalty: float, said: Sequence[tuple[int, ...]]) -> None:
    if penalty == 1.0:
        return
    for row, ids in zip(logits, said, strict=True):
        chosen = list(ids)
        row[chosen] = np.where(row[chosen] > 0, row[chosen] / penalty, row[chosen] * penalty)


def _choose(
    logits: NDArray[np.float64], options: Options, numbers: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Returns an id for each row, (N,)."""
    shifted = _below_peak(logits)
    best: NDArray[np.int64] = logits.argmax(axis=1)
    is_none = logits[np.arange(len(best)), best] == -np.inf
    if options.temperature == 0:
        ids = best
    else:
        with np.errstate(over="ignore"):  # far below the peak there is no weight
            weights = np.exp(shifted / options.temperature)
        _filter(weights, options)
        sums = weights.cumsum(axis=1)
        ids = (sums <= (numbers * sums[:, -1])[:, np.newaxis]).sum(axis=1)
        last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
        ids = np.minimum(ids, last)  # a product may be rounded up to the whole sum
    ids[is_none] = NOTHING
    return ids


def _below_peak(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far each logit is below the largest of its row, 0 or negative."""
    peak = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinities that are the peak have no difference; it is 0
        below: NDArray[np.float64] = np.where(logits == peak, 0.0, logits - peak)
    return below


def _filter(weights: NDArray[np.float64], options: Options) -> None:
    """Takes the weight of tokens that are not to be drawn; the largest of each row is 1."""
    size = weights.shape[1]
    if 0 < options.top_k < size:
        least = np.partition(weights, size - options.top_k, axis=1)[:, size - options.top_k, np.newaxis]
        is_above, is_equal = weights > least, weights == least
        room = options.top_k - is_above.sum(axis=1, keepdims=True)
        weights[~(is_above | (is_equal & (is_equal.cumsum(axis=1) <= room)))] = 0.0
    if options.top_p < 1.0:
        order = (-weights).argsort(axis=1, kind="stable")
        sums = np.take_along_axis(weights, order, axis=1).cumsum(axis=1)
        reached = sums[:, :-1] >= options.top_p * sums[:, -1:]
        is_over = np.zeros(weights.shape, np.bool_)  # those after the one that reaches it
        np.put_along_axis(is_over, order[:, 1:], reached, axis=1)
        weights[is_over] = 0.0
    if options.min_p > 0.0:
        weights[weights < options.min_p] = 0.0
