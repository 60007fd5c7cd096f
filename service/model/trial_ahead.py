"""Tells a network that looks ahead from one that mixes tokens otherwise.

One token a run would give a network that looks ahead numbers that it never gives where it was trained, on
whole sequences: no setting serves it. A scale or a count of all that is in a run is something else.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.protocol import Model
from service.model.trial_inputs import LEAST_ROWS, Sample, loud
from service.model.trial_runs import StepFailed, distances, output_in_words, run
from service.model.trial_words import has_one_scale, has_reverse


def looks_ahead(
    model: Model,
    sample: Sample,
    data: bytes,
    token_count: int,
    tolerance: Callable[[NDArray[Any]], float],
) -> bool:
    """Tells whether what an earlier token of a run gives depends on a later one.

    Args:
        model: It gives something else in a run of so many tokens than one by one.
        sample: What it is tried on.
        data: Its file: a scale for all that a run gets reaches back from later tokens as well, and where no
            output is an earlier token's, only the direction of a recurrence tells.
        token_count: Of the run, >= 2.
        tolerance: Below which a difference of such an array is none.
    """
    each = [output_in_words(spec) for spec in model.contract.outputs if not spec.is_last]
    if not each or has_one_scale(data):
        return has_reverse(data)
    cut = token_count // 2
    for row in range(LEAST_ROWS):
        tokens, states = loud(sample, [row], 1.0)
        other = tokens[:token_count].copy()
        other[cut:] = sample.tokens[cut:token_count, [(row + 1) % LEAST_ROWS]]
        try:
            given, changed = (run(model, part, states)[0] for part in (tokens[:token_count], other))
        except StepFailed:
            continue  # these tokens do not go together
        earlier, earlier_changed = (
            {name: result[name][:, :cut] for name in each} for result in (given, changed)
        )
        sizes = distances(earlier_changed, earlier)
        if any(np.max(size) > tolerance(earlier[name]) for name, size in sizes.items()):
            return True
    return False
