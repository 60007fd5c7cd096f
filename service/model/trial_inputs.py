"""What a step graph is tried on: tokens of its vocabulary, or features of several sizes, and states.

All is drawn from one seed, so that a file is accepted or refused for good. States are those that the graph
reaches by itself from its initial one: what an integer, or a float that stands for one, may be, only the
graph knows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Contract, opening_rows
from service.model.protocol import Arrays, Model

SEED = 2
DRAWN_IDS = 32
"""So many ids of a vocabulary are drawn, the first and the last among them."""

LADDER: tuple[tuple[float, ...], ...] = ((0.1, 1.0, 20.0, 0.0), (0.1, 1.0, 0.0), (0.0,))
"""Sizes of features that are drawn together; 0 stands for features that are 0 or 1. A graph that fails on
some of them takes features that stand for something else, say ids, and gets fewer, at last zeros."""

LEAST_ROWS, MOST_ROWS = 3, 64
MOST_WATCHED = 8
LEAST_TOKENS, MOST_TOKENS = 2, 32
ROLLED = 8
"""States are those after 0 .. 8 tokens."""

MAX_BYTES = 16 << 20
"""Of what a run of more than a few rows takes and gives; the graph needs memory of its own beside."""

_EPSILON = float(np.finfo(np.float32).eps)
_MOST_NUDGED = 1e-3


class Sample(NamedTuple):
    """Rows to run: the first ones are watched, the others are beside them.

    Attributes:
        tokens: (T, N, ...).
        states: State name -> (N, ...).
        watched_count: How many are watched.
        id_columns: Columns of the tokens that are no numbers but ids.
    """

    tokens: NDArray[Any]
    states: dict[str, NDArray[Any]]
    watched_count: int
    id_columns: tuple[int, ...]


def draw(model: Model, given: NDArray[Any] | None = None) -> Sample:
    """Draws rows for a model.

    Args:
        model: It is run, to reach states.
        given: Tokens to take instead of drawn ones, (n,) or (n, width).

    Raises:
        Exception: Whatever the model raises on the last kind of tokens that there is.
    """
    contract = model.contract
    rng = np.random.default_rng(SEED)
    row_count = _row_count(contract)
    size = (ROLLED + MOST_TOKENS, row_count)
    kinds = list(_drawn(contract, rng, size) if given is None else _repeated(given, contract, size))
    for tokens in kinds[:-1]:
        try:
            return _rolled(model, tokens)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001, S112 -- whatever it is, there are smaller features to try
            continue
    return _rolled(model, kinds[-1])


def fits(contract: Contract, row_count: int, token_count: int) -> bool:
    """Tells whether a run is small enough to be tried; the smallest ones always are."""
    is_least = row_count <= LEAST_ROWS and token_count <= LEAST_TOKENS
    return is_least or _run_bytes(contract, row_count, token_count) <= MAX_BYTES


def has_sizes(contract: Contract) -> bool:
    """Tells whether anything that a session brings can be large: features, or a state of floats."""
    return contract.input.kind == "features" or any(spec.dtype.kind == "f" for spec in contract.states)


def loud(sample: Sample, rows: Sequence[int], scale: float) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Returns tokens and states of some rows, what is float so many times as large."""
    rng = np.random.default_rng(SEED)
    tokens = sample.tokens[:, rows]
    states = {name: array[rows] for name, array in sample.states.items()}
    if scale == 1.0:
        return tokens, states
    for name, array in states.items():
        if array.dtype.kind == "f":
            states[name] = _scaled(array + 0.1 * rng.standard_normal(array.shape), scale, array.dtype)
    if tokens.dtype.kind == "f":
        tokens = _kept_ids(sample, tokens, _scaled(tokens, scale, tokens.dtype))
    return tokens, states


def nudged(sample: Sample, ulps: float, number: int) -> Sample:
    """Returns the sample with its floats changed by up to so many last places, in a way of its own."""
    rng = np.random.default_rng((SEED, number))
    states = {name: _nudged(array, ulps, rng) for name, array in sample.states.items()}
    tokens = _kept_ids(sample, sample.tokens, _nudged(sample.tokens, ulps, rng))
    return sample._replace(tokens=tokens, states=states)


def _kept_ids(sample: Sample, tokens: NDArray[Any], changed: NDArray[Any]) -> NDArray[Any]:
    """Returns changed tokens with the ids among them as they were."""
    for column in sample.id_columns:
        changed[..., column] = tokens[..., column]
    return changed


def _row_count(contract: Contract) -> int:
    return int(np.clip(MAX_BYTES // max(1, _run_bytes(contract, 1, 1)), LEAST_ROWS, MOST_ROWS))


def _run_bytes(contract: Contract, row_count: int, token_count: int) -> int:
    per_token = contract.input.width * contract.input.dtype.itemsize
    per_token += sum(output.size_bytes for output in contract.outputs)
    return row_count * (2 * contract.state_bytes + token_count * per_token)


def _drawn(contract: Contract, rng: np.random.Generator, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yields tokens (T, N, ...): one kind of ids, or features of ever fewer sizes."""
    if contract.vocabulary is not None and contract.input.kind == "token_id":
        last = contract.vocabulary.size - 1
        ids = rng.integers(0, last + 1, DRAWN_IDS)
        ids[:2] = 0, last
        yield rng.choice(ids, size).astype(contract.input.dtype)
        return
    for sizes in LADDER:
        number = np.add.outer(np.arange(size[0]), np.arange(size[1])) % len(sizes)
        scale = np.array(sizes)[number][..., np.newaxis]
        normal = rng.standard_normal((*size, contract.input.width)) * scale
        either = rng.integers(0, 2, normal.shape)
        yield _with_ids(contract, rng, np.where(scale == 0, either, normal).astype(contract.input.dtype))
    yield _with_ids(contract, rng, np.zeros((*size, contract.input.width), contract.input.dtype))


def _repeated(given: NDArray[Any], contract: Contract, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yields the given tokens, every row from another place on."""
    places = np.add.outer(np.arange(size[0]), 7 * np.arange(size[1])) % len(given)
    yield given[places].astype(contract.input.dtype)


def _rolled(model: Model, tokens: NDArray[Any]) -> Sample:
    """Gives row i the state after i modulo 9 of the first tokens; one that is not finite is not kept."""
    row_count = tokens.shape[1]
    after = opening_rows(model.contract, row_count)
    _draw_session_inputs(model.contract, after)
    states = {name: array.copy() for name, array in after.items()}
    reached: Arrays = after
    for depth in range(1, ROLLED + 1):
        _, reached = model.run(tokens[depth - 1 : depth], reached, ())
        chosen = np.arange(row_count) % (ROLLED + 1) == depth
        for array in reached.values():
            chosen &= np.isfinite(array).reshape(row_count, -1).all(axis=1)
        for name, array in states.items():
            array[chosen] = reached[name][chosen]
    id_columns = tuple(column for column, _ in model.contract.id_columns)
    return Sample(tokens[ROLLED:], states, min(MOST_WATCHED, row_count // 2), id_columns)


def _draw_session_inputs(contract: Contract, states: dict[str, NDArray[Any]]) -> None:
    """Gives every row other inputs of its session, of those that have numbers."""
    rng = np.random.default_rng(SEED)
    for spec in contract.states:
        if spec.kind == "session_input" and spec.dtype.kind == "f":
            states[spec.name] = rng.standard_normal(states[spec.name].shape).astype(spec.dtype)


def _with_ids(contract: Contract, rng: np.random.Generator, tokens: NDArray[Any]) -> NDArray[Any]:
    """Puts ids into the columns that have ids."""
    for column, id_count in contract.id_columns:
        tokens[..., column] = rng.integers(0, id_count, tokens.shape[:-1])
    return tokens


def _scaled(array: NDArray[Any], scale: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    most = float(np.finfo(dtype).max)
    scaled: NDArray[Any] = np.clip(array.astype(np.float64) * scale, -most, most).astype(dtype)
    return scaled


def _nudged(array: NDArray[Any], ulps: float, rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    epsilon = max(float(np.finfo(array.dtype).eps), _EPSILON)
    size = min(ulps * epsilon, max(_MOST_NUDGED, epsilon))
    size_of_most = np.sort(np.abs(array), axis=None)[array.size // 2]
    typical = np.where(array == 0, size_of_most, np.abs(array))
    change = size * typical * rng.uniform(-1, 1, array.shape)
    moved: NDArray[Any] = (array + change).astype(array.dtype)
    return moved
