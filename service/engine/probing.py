"""Finds out what follows a state where no token has come to tell it. No I/O.

A model weighs the next token when it gets one. Where none is to be applied, each token of the vocabulary is
run from the same state, and what the model says of it as it arrives is its weight.
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from service.engine.cache import split_rows
from service.model.protocol import Halt, Model, SubwordModel

ROWS_PER_CALL = 256
"""A state takes its bytes so many times."""


def probe(model: Model, state: bytes, halt: Halt) -> NDArray[Any]:
    """Weighs what follows a state.

    Args:
        model: One that has `texts`, or gives `token_log_prob`.
        state: Raw, of one session.
        halt: Ends it from another thread.

    Returns:
        Of a model over subwords its ranked output, (1, V); else log-probabilities, (1, V).

    Raises:
        Exception: Whatever the runtime raises.
    """
    contract = model.contract
    row = np.frombuffer(state, np.uint8)[np.newaxis]
    if contract.texts:
        return cast(SubwordModel, model).settled(split_rows(contract, row), halt)
    assert contract.vocabulary is not None, "bug: tokens are weighed of what has no vocabulary"
    assert contract.token_log_prob is not None, "bug: tokens are weighed by what is not given"
    name, size = contract.token_log_prob.name, contract.vocabulary.size
    parts = []
    for start in range(0, size, ROWS_PER_CALL):
        ids = np.arange(start, min(size, start + ROWS_PER_CALL), dtype=contract.input.dtype)
        states = split_rows(contract, np.repeat(row, len(ids), axis=0))
        outputs, _ = model.run(ids[np.newaxis], states, (name,), halt)
        parts.append(outputs[name].reshape(-1))
    return np.concatenate(parts)[np.newaxis]
