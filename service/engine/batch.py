"""Runs the chunks of a batch through a model. No I/O.

Blocks are ordered by length, longest first, so that the chunks that have tokens left are always the first
rows of the arrays; they run together, as many tokens in one call as all of them have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.block import Block
from service.engine.hot_state import Standing, join_rows, split_rows
from service.engine.results import check_results
from service.engine.work import Selection
from service.errors import ModelFailed
from service.model.contract import Contract
from service.model.protocol import Arrays, Halt, Model

MAX_STEPS_PER_CALL = 4096
"""Tokens times rows in one call of the model; with 256 logits each they take 4 MiB."""

FEW = 8
"""Up to so many candidates are picked one by one."""


class Steps(NamedTuple):
    """A block about to run.

    Attributes:
        block: Its chunks.
        slots: Of its sessions among the hot ones, int64 (B,).
        standing: Where they stand: where the chunks belong.
        model: The model of all of them.
        selection: What to return, completed.
    """

    block: Block
    slots: NDArray[np.int64]
    standing: Standing
    model: Model
    selection: Selection

    def part(self, chosen: NDArray[np.int64]) -> "Steps":
        """Returns some of the rows, by index."""
        return self._replace(
            block=self.block.part(chosen), slots=self.slots[chosen], standing=self.standing.part(chosen)
        )


class GroupOutputs(NamedTuple):
    """What R chunks of k tokens gave, all with the same selection, for the edge to encode.

    Attributes:
        row_count: R.
        token_count: k.
        top_ids: int32 (R * k, top_k), best first; None if not asked for.
        top_log_probs: float32 (R * k, top_k).
        token_log_probs: float32 (R * k,); None if not asked for.
        tensors: Output name -> (R * k, ...); (R, ...) of outputs that are given once a chunk, as are the
            candidates by one of these.
        state: State name -> (R, ...).
    """

    row_count: int
    token_count: int
    top_ids: NDArray[np.int32] | None
    top_log_probs: NDArray[np.float32] | None
    token_log_probs: NDArray[np.float32] | None
    tensors: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]


class EncodeOutputs(Protocol):
    """Turns outputs into the bytes that are stored and sent. Implemented by the edge."""

    def __call__(self, outputs: GroupOutputs) -> NDArray[np.uint8]:
        """Returns the encoded outputs of each row, (R, n)."""
        ...


@dataclass(slots=True)
class Ran:
    """What came of running a block.

    Attributes:
        steps: The block.
        states: Raw next states, (B, state_bytes).
        is_finite: Which of them have neither NaN nor infinity, (B,); None if all.
        outputs: Encoded, (B, n).
    """

    steps: Steps
    states: NDArray[np.uint8]
    is_finite: NDArray[np.bool_] | None
    outputs: NDArray[np.uint8]


def run_batch(
    model: Model,
    group: Sequence[Steps],
    states: Sequence[NDArray[np.uint8]],
    encode: EncodeOutputs,
    halt: Halt,
) -> list[Ran]:
    """Runs blocks of distinct sessions of one model.

    Args:
        model: The model.
        group: The blocks.
        states: Raw states of the sessions of each block, (B, state_bytes).
        encode: Encodes what they gave.
        halt: Ends the run from another thread.

    Returns:
        One result per block, in an order of its own.

    Raises:
        ModelFailed: The model raised, or gave what its contract does not say.
    """
    order = sorted(range(len(group)), key=lambda index: -group[index].block.asked.token_count)
    ordered = [group[index] for index in order]
    before = _joined([states[index] for index in order])
    try:
        outputs, after = _run(model, ordered, split_rows(model.contract, before), halt)
        rows = join_rows(model.contract, after)
    except Exception as error:  # a model may raise anything; its batch fails, no more
        reason = f"model {model.name} version {model.version} failed: {type(error).__name__}: {error}"
        raise ModelFailed(reason) from error
    finite = _finite_rows(after)
    ran: list[Ran] = []
    row = token = 0
    for steps in ordered:
        rows_end = row + len(steps.block)
        tokens_end = token + len(steps.block) * steps.block.asked.token_count
        part = slice(row, rows_end)
        encoded = encode(_outputs_of(steps, outputs, after, slice(token, tokens_end), part))
        ran.append(Ran(steps, rows[part], None if finite is None else finite[part], encoded))
        row, token = rows_end, tokens_end
    return ran


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _finite_rows(states: dict[str, NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Tells which rows have neither NaN nor infinity; None if all."""
    if all(_is_finite(array) for array in states.values()):
        return None
    finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in states.values()]
    rows: NDArray[np.bool_] = np.logical_and.reduce(finite)
    return None if rows.all() else rows


def _is_finite(array: NDArray[Any]) -> bool:
    """Tells by one product whether an array is free of NaN and infinity; may say no where it overflows."""
    flat = array.ravel()
    return bool(np.isfinite(flat.dot(flat)))


def _run(
    model: Model, ordered: Sequence[Steps], states: dict[str, NDArray[Any]], halt: Halt
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Runs all tokens of all chunks.

    Returns:
        Needed outputs by name, (N, ...) with the tokens of each row together, (B, ...) of those that are
        given once a run; last states (B, ...).
    """
    needed = _needed_outputs(model.contract, ordered)
    counts = [steps.block.asked.token_count for steps in ordered]
    rows = [len(steps.block) for steps in ordered]
    dtype = model.contract.input.dtype
    if counts[0] == counts[-1] and counts[0] * sum(rows) <= MAX_STEPS_PER_CALL:
        tokens = _joined([steps.block.tokens for steps in ordered])
        outputs, after = _call(model, tokens.swapaxes(0, 1).astype(dtype, "C"), states, needed, halt)
        return {name: _by_row(outputs[name]) for name in needed}, dict(after)
    return _run_in_spans(model, ordered, np.repeat(counts, rows), states, needed, halt)


def _call(
    model: Model,
    tokens: NDArray[Any],
    states: dict[str, NDArray[Any]],
    needed: tuple[str, ...],
    halt: Halt,
) -> tuple[Arrays, Arrays]:
    results = model.run(tokens, states, needed, halt)
    check_results(model.contract, needed, results, *tokens.shape[:2])
    return results


def _run_in_spans(
    model: Model,
    ordered: Sequence[Steps],
    counts: NDArray[np.int64],
    states: dict[str, NDArray[Any]],
    needed: tuple[str, ...],
    halt: Halt,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    shape = () if model.contract.input.kind == "token_id" else (model.contract.input.width,)
    flat = _joined([steps.block.tokens.reshape(-1, *shape) for steps in ordered])
    tokens = flat.astype(model.contract.input.dtype)
    starts = np.concatenate([[0], np.cumsum(counts)])
    specs = {output.name: output for output in model.contract.outputs}
    collected = {
        name: np.empty(
            (len(counts if specs[name].is_last else tokens), *specs[name].shape), specs[name].dtype
        )
        for name in needed
    }
    for begin, end, active in _spans(counts.tolist()):
        places = starts[:active] + np.arange(begin, end)[:, np.newaxis]
        active_states = {name: array[:active] for name, array in states.items()}
        outputs, after = _call(model, tokens[places], active_states, needed, halt)
        for name in needed:
            if specs[name].is_last:
                collected[name][:active] = outputs[name][0]
            else:
                collected[name][places] = outputs[name]
        for name, array in states.items():
            array[:active] = after[name]
    return collected, states


def _by_row(output: NDArray[Any]) -> NDArray[Any]:
    """Turns (T, B, ...) into (B * T, ...), the tokens of each row together."""
    return output.swapaxes(0, 1).reshape(-1, *output.shape[2:])


def _spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, end, active): tokens begin..end of the first `active` chunks run in one call.

    Args:
        counts: Tokens per chunk, descending. A span ends where a chunk does, and before its outputs
            would take much memory.
    """
    begin, active = 0, len(counts)
    while active:
        end = min(counts[active - 1], begin + max(1, MAX_STEPS_PER_CALL // active))
        yield begin, end, active
        begin = end
        while active and counts[active - 1] <= begin:
            active -= 1


def _needed_outputs(contract: Contract, group: Sequence[Steps]) -> tuple[str, ...]:
    needed: set[str] = set()
    for steps in group:
        needed.update(steps.selection.tensors)
        if steps.selection.top_k and contract.ranked is not None:
            needed.add(contract.ranked.name)
        if steps.selection.token_log_prob and contract.token_log_prob is not None:
            needed.add(contract.token_log_prob.name)
    return tuple(output.name for output in contract.outputs if output.name in needed)


def _outputs_of(
    steps: Steps,
    outputs: dict[str, NDArray[Any]],
    states: dict[str, NDArray[Any]],
    tokens: slice,
    rows: slice,
) -> GroupOutputs:
    """Picks what one block asked for."""
    selection, contract = steps.selection, steps.model.contract
    ids = log_probs = surprise = None
    specs = {output.name: output for output in contract.outputs}

    def picked(name: str) -> NDArray[Any]:
        return outputs[name][rows if specs[name].is_last else tokens]

    if selection.top_k:
        assert contract.ranked is not None, "bug: a selection ranks what the model does not have"
        ids, log_probs = ranked_candidates(
            picked(contract.ranked.name), selection.top_k, contract.ranked.role
        )
    if selection.token_log_prob and contract.token_log_prob is not None:
        surprise = picked(contract.token_log_prob.name)
    return GroupOutputs(
        row_count=len(steps.block),
        token_count=steps.block.asked.token_count,
        top_ids=ids,
        top_log_probs=log_probs,
        token_log_probs=surprise,
        tensors={name: picked(name) for name in selection.tensors},
        state={name: states[name][rows] for name in states} if selection.state else {},
    )


def ranked_candidates(
    values: NDArray[Any], top_k: int, role: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ranks classes by an output of a role in `RANKED`, (N, ...); see `top_candidates`."""
    flat = values.reshape(len(values), -1).astype(np.float32, copy=False)
    if role == "logits":
        return top_candidates(flat, top_k)
    choose = _pick_largest if top_k <= FEW and np.isfinite(flat).all() else _sort_largest
    ids, largest = choose(flat, top_k)
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
    choose = _pick_largest if top_k <= FEW else _sort_largest
    ids, values = choose(logits, top_k)
    if np.isfinite(values).all():
        return ids, _log_softmax(logits, values)
    odd = np.flatnonzero(~np.isfinite(values).all(axis=1))  # picking marks what it took by -inf
    ids[odd], values[odd] = _sort_largest(logits[odd], top_k)
    with np.errstate(invalid="ignore"):  # of infinite logits there is no softmax: it is NaN
        return ids, _log_softmax(logits, values)


def _log_softmax(logits: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the log-probabilities of the logits `values`, the largest of each row first."""
    peak = values[:, :1]
    scaled = logits - peak
    np.exp(scaled, out=scaled)
    ones = np.ones((logits.shape[1], 1), np.float32)
    values -= peak + np.log(scaled @ ones)  # a product with ones is a sum, at a third of the time
    return values


def _pick_largest(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Takes the largest, one after the other; of equal ones the smallest id."""
    count = len(logits)
    ids = np.empty((count, top_k), np.int32)
    values = np.empty((count, top_k), np.float32)
    left, rows = logits.copy(), np.arange(count)
    if count == 1:  # the idle server: scalars are faster than arrays of one
        row = left[0]
        for place in range(top_k):
            best = row.argmax()
            ids[0, place], values[0, place], row[best] = best, row[best], -np.inf
        return ids, values
    for place in range(top_k):
        best = left.argmax(axis=1)
        ids[:, place] = best
        values[:, place] = left[rows, best]
        left[rows, best] = -np.inf
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
