"""Ranks the classes of an output: which are likeliest, and how likely. Pure."""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 8
"""Up to so many candidates are picked one by one."""


def ranked_candidates(
    values: NDArray[Any], top_k: int, role: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ranks classes by an output of a role in `RANKED`, (N, ...); see `top_candidates`."""
    flat = values.reshape(len(values), -1).astype(np.float32, copy=False)
    if role == "logits":
        return top_candidates(flat, top_k)
    if top_k <= FEW and np.isfinite(flat).all():
        ids, largest = _pick_largest(flat.copy(), top_k)
    else:
        ids, largest = _sort_largest(flat, top_k)
    if role == "probs":
        with np.errstate(divide="ignore", invalid="ignore"):  # a probability of 0, or none
            largest = np.log(largest)
    return ids, largest


def top_candidates(
    logits: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ranks the next tokens.

    Args:
        logits: float32 (N, V).
        top_k: 1..V.

    Returns:
        Ids, int32 (N, top_k), best first, and their log-probabilities, float32 (N, top_k): the
        log-softmax of the logits.
    """
    scratch = logits.copy()  # one for both: it stays in the processor's cache
    ids, values = _pick_largest(scratch, top_k) if top_k <= FEW else _sort_largest(logits, top_k)
    flat = values.ravel()
    if math.isfinite(flat.dot(flat)):  # one product says it of all, but where it overflows
        return ids, _log_softmax(logits, values, scratch)
    odd = np.flatnonzero(~np.isfinite(values).all(axis=1))  # picking marks what it took by -inf
    ids[odd], values[odd] = _sort_largest(logits[odd], top_k)
    with np.errstate(invalid="ignore"):  # of infinite logits there is no softmax: it is NaN
        return ids, _log_softmax(logits, values, scratch)


def _log_softmax(
    logits: NDArray[np.float32], values: NDArray[np.float32], scratch: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns the log-probabilities of the logits `values`, the largest of each row first."""
    peak = values[:, :1]
    np.subtract(logits, peak, out=scratch)
    np.exp(scratch, out=scratch)
    total = scratch.dot(_ones(logits.shape[1]))  # a product with ones is a sum, at a third of the time
    values -= peak + np.log(total)
    return values


@functools.lru_cache(64)
def _ones(count: int) -> NDArray[np.float32]:
    return np.ones((count, 1), np.float32)


def _pick_largest(left: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Takes the largest, one after the other, leaving -inf there; of equal ones the smallest id."""
    count, size = left.shape
    ids = np.empty((count, top_k), np.int32)
    values = np.empty((count, top_k), np.float32)
    if count == 1:  # the idle server: scalars are faster than arrays of one
        row = left[0]
        for place in range(top_k):
            best = row.argmax()
            ids[0, place], values[0, place], row[best] = best, row[best], -np.inf
        return ids, values
    flat, starts = left.reshape(-1), np.arange(0, count * size, size)
    for place in range(top_k):
        best = left.argmax(axis=1)
        ids[:, place] = best
        best += starts
        values[:, place] = flat[best]
        flat[best] = -np.inf
    return ids, values


def _sort_largest(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Takes the largest and sorts them by value, then by id; NaN is the least."""
    count, size = logits.shape
    logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    if top_k < size:
        candidates = logits.argpartition(size - top_k, axis=1)[:, size - top_k :]
        candidates.sort(axis=1)
    else:
        candidates = np.broadcast_to(np.arange(size), logits.shape)
    rows = np.arange(count)[:, np.newaxis]
    values = logits[rows, candidates]
    order = (-values).argsort(axis=1, kind="stable")
    return candidates[rows, order].astype(np.int32), values[rows, order]
