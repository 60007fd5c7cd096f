"""Runs the chunks of a batch through a model. No I/O.

Blocks are ordered by length, longest first, so that the chunks that have tokens left are always the first
rows of the arrays; they run together, as many tokens in one call as all of them have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.common.errors import ModelFailed
from service.engine.block import Block
from service.engine.hot_state import Standing, join_rows, split_rows
from service.engine.ranking import ranked_candidates
from service.engine.results import check_results
from service.engine.work import Selection
from service.model.contract import Contract
from service.model.protocol import Arrays, Halt, Model

MAX_STEPS_PER_CALL = 4096
"""Tokens times rows in one call of the model."""

MAX_OUTPUT_BYTES = 16 << 20
"""Of the outputs of one call: 4,096 steps with 1,024 logits, or fewer steps with more. A batch that gives
more in all is ranked call by call and lets go of what it has ranked, so that neither the number of its
tokens nor the size of the vocabulary is a matter of memory."""

_TOP_IDS, _TOP_LOG_PROBS = "\0ids", "\0log_probs"
"""Stand among the outputs in place of what has been ranked; no output has such a name."""


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
    return [
        ran
        for part in _parts(model.contract, group)
        for ran in _run_together(
            model, [group[place] for place in part], [states[place] for place in part], encode, halt
        )
    ]


def _parts(contract: Contract, group: Sequence[Steps]) -> list[list[int]]:
    """Divides a large batch by whether blocks want the whole of what others only want ranked."""
    ranked, every = contract.ranked, list(range(len(group)))
    if ranked is None or not _is_large(contract, group):
        return [every]
    whole = {place for place in every if ranked.name in group[place].selection.tensors}
    return [part for part in ([place for place in every if place not in whole], sorted(whole)) if part]


def _is_large(contract: Contract, group: Sequence[Steps]) -> bool:
    """Whether the outputs of a batch take more memory than those of one call may."""
    token_count = sum(len(steps.block) * steps.block.asked.token_count for steps in group)
    return token_count > _most_steps(contract, _needed_outputs(contract, group))


def _most_steps(contract: Contract, needed: Sequence[str]) -> int:
    """Returns how many tokens times rows one call may have."""
    step_bytes = sum(output.size_bytes for output in contract.outputs if output.name in needed)
    return max(1, min(MAX_STEPS_PER_CALL, MAX_OUTPUT_BYTES // max(1, step_bytes)))


def _run_together(
    model: Model,
    group: Sequence[Steps],
    states: Sequence[NDArray[np.uint8]],
    encode: EncodeOutputs,
    halt: Halt,
) -> list[Ran]:
    """Runs blocks that share calls of the model; see `run_batch`."""
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
        given once a run; of a large batch the candidates in place of what is only ranked; last states
        (B, ...).
    """
    needed = _needed_outputs(model.contract, ordered)
    counts = [steps.block.asked.token_count for steps in ordered]
    rows = [len(steps.block) for steps in ordered]
    dtype = model.contract.input.dtype
    if counts[0] == counts[-1] and not _is_large(model.contract, ordered):
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
    top_k = _ranked_at_once(model.contract, ordered)
    is_last = {name: specs[name].is_last for name in needed}
    if model.contract.ranked is not None:
        is_last |= dict.fromkeys((_TOP_IDS, _TOP_LOG_PROBS), model.contract.ranked.is_last)
    collected: dict[str, NDArray[Any]] = {}
    for begin, end, active in _spans(counts.tolist(), _most_steps(model.contract, needed)):
        places = starts[:active] + np.arange(begin, end)[:, np.newaxis]
        active_states = {name: array[:active] for name, array in states.items()}
        outputs, after = _call(model, tokens[places], active_states, needed, halt)
        given = {name: outputs[name].reshape(-1, *specs[name].shape) for name in needed}
        if top_k and (ranked := model.contract.ranked) is not None:
            given |= _as_candidates(given.pop(ranked.name), top_k, ranked.role)
        for name, array in given.items():
            if name not in collected:
                row_count = len(counts if is_last[name] else tokens)
                collected[name] = np.empty((row_count, *array.shape[1:]), array.dtype)
            collected[name][slice(active) if is_last[name] else places.ravel()] = array
        for name, array in states.items():
            array[:active] = after[name]
    return collected, states


def _ranked_at_once(contract: Contract, group: Sequence[Steps]) -> int:
    """Returns how many candidates to take of each call of a large batch; 0 if logits are kept whole."""
    is_whole = any(contract.ranked.name in steps.selection.tensors for steps in group if contract.ranked)
    return (
        0 if is_whole or not _is_large(contract, group) else max(steps.selection.top_k for steps in group)
    )


def _as_candidates(values: NDArray[Any], top_k: int, role: str) -> dict[str, NDArray[Any]]:
    ids, log_probs = ranked_candidates(values, top_k, role)
    return {_TOP_IDS: ids, _TOP_LOG_PROBS: log_probs}


def _by_row(output: NDArray[Any]) -> NDArray[Any]:
    """Turns (T, B, ...) into (B * T, ...), the tokens of each row together."""
    return output.swapaxes(0, 1).reshape(-1, *output.shape[2:])


def _spans(counts: list[int], most_steps: int) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, end, active): tokens begin..end of the first `active` chunks run in one call.

    Args:
        counts: Tokens per chunk, descending. A span ends where a chunk does, and before its outputs
            would take much memory.
        most_steps: Tokens times rows of a call.
    """
    begin, active = 0, len(counts)
    while active:
        end = min(counts[active - 1], begin + max(1, most_steps // active))
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
        if _TOP_IDS in outputs:
            part = rows if contract.ranked.is_last else tokens
            ids, log_probs = (outputs[name][part, : selection.top_k] for name in (_TOP_IDS, _TOP_LOG_PROBS))
        else:
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
