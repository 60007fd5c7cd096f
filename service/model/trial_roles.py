"""Whether the values of an output are what its role says. Pure."""

import numpy as np
from numpy.typing import NDArray

SUM_TOLERANCE = 1e-2
"""Probabilities of float16, or of a softmax that is only near one, do not add up to 1 exactly."""


def wrong_role(role: str, rows: NDArray[np.float64]) -> str | None:
    """Says what is wrong with values of a role, and what would be right; None if nothing is.

    Args:
        role: Of the output.
        rows: (N, classes), finite, of several tokens.
    """
    if role == "logits" and rows.shape[1] > 1 and _are_probs(rows):
        return (
            "and its values are 0..1 and add up to 1, so a second softmax would flatten them; set its role "
            'to "probs", or export it without its softmax'
        )
    if role == "probs" and not _are_probs(rows):
        return (
            f"and its values are {rows.min():.3g}..{rows.max():.3g} and add up to {rows[0].sum():.3g}; set "
            'its role to "logits", or to "score" if they are independent of each other'
        )
    if role == "log_probs" and not _are_probs(np.exp(rows)):
        return (
            f"and their exponentials add up to {np.exp(rows[0]).sum():.3g}, not to 1; set its role to "
            '"logits"'
        )
    return None


def _are_probs(rows: NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        sums = rows.sum(axis=1)
    return bool((rows >= -SUM_TOLERANCE).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all())
