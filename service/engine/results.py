"""Holds what a model gave against its contract, where it enters. Pure.

The contract was held against what the graph declares when it was loaded; what a graph computes may have
other extents, and would then be cut up wrongly between neighbours.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Contract
from service.model.protocol import Arrays


class WrongResult(Exception):
    """A tensor is missing or not what the contract says; the message names it."""


def check_results(
    contract: Contract,
    needed: Collection[str],
    results: tuple[Arrays, Arrays],
    token_count: int,
    row_count: int,
) -> None:
    """Checks what a call of a model gave.

    Args:
        contract: Of the model.
        needed: Names of the outputs asked for.
        results: Outputs (T, B, ...), or (1, B, ...) of those that are given once a run, and next states
            (B, ...), by name.
        token_count: T.
        row_count: B.

    Raises:
        WrongResult: See there.
    """
    outputs, states = results
    for output in contract.outputs:
        if output.name in needed:
            shape = (1 if output.is_last else token_count, row_count, *output.shape)
            _check("output", output.name, outputs.get(output.name), output.dtype, shape)
    for state in contract.states:
        _check("state", state.name, states.get(state.name), state.dtype, (row_count, *state.shape))


def _check(
    what: str, name: str, array: NDArray[Any] | None, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    if array is None:
        raise WrongResult(f"{what} {name!r} is missing")
    if array.shape != shape or array.dtype != dtype:
        raise WrongResult(
            f"{what} {name!r} is {array.dtype.name} {array.shape}, the contract says {dtype.name} {shape}"
        )
