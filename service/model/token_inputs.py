"""What the inputs of a graph get of tokens: their columns, as their dtype, behind their context. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Context, Contract, GraphInput
from service.model.protocol import Arrays


def split_tokens(
    contract: Contract, tokens: NDArray[Any], states: Arrays
) -> tuple[list[NDArray[Any]], Arrays]:
    """Returns what each input gets, in the order of the contract's, and the contexts behind the tokens.

    Args:
        contract: Of the graph.
        tokens: int64 (T, B) ids, or float32 (T, B, width) features.
        states: State name -> (B, ...); contexts are taken out of it.

    Returns:
        Arrays (T, B, ...) in the graph's dtype, and state name -> (B, ...).
    """
    arrays, contexts = [], {}
    for part in contract.graph_inputs:
        own = _own(contract, part, tokens)
        if part.context is not None:
            own, contexts[part.context.state] = _windows(own, states[part.context.state], part.context)
        arrays.append(own)
    return arrays, contexts


def _own(contract: Contract, part: GraphInput, tokens: NDArray[Any]) -> NDArray[Any]:
    if contract.input.kind == "features":
        tokens = tokens[..., slice(*part.columns)]
    if tokens.shape[2:] != part.shape:
        tokens = tokens.reshape(*tokens.shape[:2], *part.shape)
    return tokens.astype(part.dtype, copy=False)


def _windows(own: NDArray[Any], kept: NDArray[Any], context: Context) -> tuple[NDArray[Any], NDArray[Any]]:
    """Puts before each token what came before it.

    Args:
        own: (T, B, ...) of the tokens.
        kept: (B, ...) of the tokens before them.
        context: Which axis goes on.

    Returns:
        Windows (T, B, ...), and what is to be kept (B, ...).
    """
    token_count, new = len(own), own.shape[2 + context.axis]
    line = np.moveaxis(np.moveaxis(own, 2 + context.axis, -1), 0, -2)  # (B, other axes, T, new)
    line = line.reshape(*line.shape[:-2], token_count * new)
    line = np.concatenate([np.moveaxis(kept, 1 + context.axis, -1), line], axis=-1)
    after = line[..., line.shape[-1] - context.extent :]
    every = np.lib.stride_tricks.sliding_window_view(line, context.extent + new, axis=-1)[..., ::new, :]
    windows = np.moveaxis(np.moveaxis(every, -2, 0), -1, 2 + context.axis)
    return np.ascontiguousarray(windows), np.ascontiguousarray(np.moveaxis(after, -1, 1 + context.axis))


def opening_rows(contract: Contract, row_count: int) -> dict[str, NDArray[Any]]:
    """Returns the states that sessions begin with, (B, ...) by name."""
    return {
        spec.name: np.repeat(spec.initial_array[np.newaxis], row_count, axis=0) for spec in contract.states
    }
