"""The baseline without memory: what the last subword alone says of the next one, counted.

A pair is as likely as it was often, smoothed by how likely its second subword is anywhere (Witten and Bell
1991): p(x | y) = (c(y, x) + t(y) p(x)) / (c(y) + t(y)), with t(y) the number of different successors of y.
"""

import numpy as np
from numpy.typing import NDArray


def bigram_nats(
    training: NDArray[np.int64], held_out: NDArray[np.int64], vocabulary: int, start: int
) -> NDArray[np.float64]:
    """Returns -ln p of each subword of the held-out texts but their starts, which are given; float64 (n,).

    Args:
        training: Ids of texts one after the other, each with `start` before it.
        held_out: Likewise.
        vocabulary: Number of entries.
        start: See there.
    """
    first, second = _pairs(training, start)
    single = (np.bincount(second, minlength=vocabulary) + 1.0) / (len(second) + vocabulary)
    pairs, counts = np.unique(first * vocabulary + second, return_counts=True)
    total = np.bincount(first, minlength=vocabulary)
    successors = np.bincount(pairs // vocabulary, minlength=vocabulary)
    first, second = _pairs(held_out, start)
    places = np.minimum(np.searchsorted(pairs, first * vocabulary + second), len(pairs) - 1)
    seen = np.where(pairs[places] == first * vocabulary + second, counts[places], 0)
    different = np.maximum(successors[first], 1)
    likely = (seen + different * single[second]) / (total[first] + different)
    nats: NDArray[np.float64] = -np.log(likely)
    return nats


def _pairs(ids: NDArray[np.int64], start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns subwords and their successors within one text."""
    is_within = ids[1:] != start
    return ids[:-1][is_within], ids[1:][is_within]
