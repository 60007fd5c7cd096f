"""Runs the chunks of a batch through a model. No I/O.

Rows are ordered by length, longest first, so that the chunks that have tokens left are always the first
rows of the arrays; they run together, as many tokens in one call as all of them have.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ModelFailed
from service.engine.cache import join_rows, split_rows
from service.engine.checks import check_results
from service.engine.ranking import ranked_candidates
from service.engine.rows import Rows
from service.model.contract import Contract
from service.model.protocol import Arrays, Halt, Model
from service.store.outputs import Outputs

MAX_STEPS_PER_CALL = 4096
"""Tokens times rows in one call of the model."""

MAX_OUTPUT_BYTES = 16 << 20
"""Of the outputs of one call: 4,096 steps with 1,024 logits, or fewer steps with more. A batch that gives
more in all is ranked call by call and lets go of what it has ranked, so that neither the number of its
tokens nor the size of the vocabulary is a matter of memory."""

Encode = Callable[[Outputs], NDArray[np.uint8]]
"""Turns outputs into the bytes that are stored and sent, of each row: `store.outputs.encode_outputs`."""

_TOP_IDS, _TOP_LOG_PROBS = "\0ids", "\0log_probs"
"""Stand among the outputs in place of what has been ranked; no output has such a name."""


def run_batch(model: Model, group: Sequence[Rows], encode: Encode, halt: Halt) -> None:
    """Runs rows of distinct sessions of one model, and fills in what they gave.

    Args:
        model: The model.
        group: The rows, with their states.
        encode: Encodes what they gave.
        halt: Ends the run from another thread.

    Raises:
        ModelFailed: The model raised, or gave what its contract does not say.
    """
    for part in _parts(model.contract, group):
        _run_together(model, part, encode, halt)


def _parts(contract: Contract, group: Sequence[Rows]) -> list[Sequence[Rows]]:
    """Divides a large batch by whether rows want the whole of what others only want ranked."""
    ranked = contract.ranked
    if ranked is None or not _is_large(contract, group):
        return [group]
    whole = [rows for rows in group if ranked.name in rows.selection.tensors]
    others = [rows for rows in group if ranked.name not in rows.selection.tensors]
    return [part for part in (others, whole) if part]


def _is_large(contract: Contract, group: Sequence[Rows]) -> bool:
    """Whether the outputs of a batch take more memory than those of one call may."""
    token_count = sum(len(rows) * rows.asked.token_count for rows in group)
    return token_count > _most_steps(contract, _needed_outputs(contract, group))


def _most_steps(contract: Contract, needed: Sequence[str]) -> int:
    """Returns how many tokens times rows one call may have."""
    step_bytes = sum(output.size_bytes for output in contract.outputs if output.name in needed)
    return max(1, min(MAX_STEPS_PER_CALL, MAX_OUTPUT_BYTES // max(1, step_bytes)))


def _run_together(model: Model, group: Sequence[Rows], encode: Encode, halt: Halt) -> None:
    """Runs rows that share calls of the model; see `run_batch`."""
    ordered = sorted(group, key=lambda rows: -rows.asked.token_count)
    before = _joined([rows.states for rows in ordered])
    try:
        outputs, after = _run(model, ordered, split_rows(model.contract, before), halt)
        next_states = join_rows(model.contract, after)
    except Exception as error:  # a model may raise anything; its batch fails, no more
        reason = f"model {model.name} version {model.version} failed: {type(error).__name__}: {error}"
        raise ModelFailed(reason) from error
    finite = _finite_rows(after)
    row = token = 0
    for rows in ordered:
        rows_end = row + len(rows)
        tokens_end = token + len(rows) * rows.asked.token_count
        part = slice(row, rows_end)
        rows.outputs = encode(_outputs_of(rows, outputs, after, slice(token, tokens_end), part))
        rows.next_states = next_states[part]
        rows.is_finite = None if finite is None else finite[part]
        del rows.states  # what comes next finds their memory free
        row, token = rows_end, tokens_end


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
    model: Model, ordered: Sequence[Rows], states: dict[str, NDArray[Any]], halt: Halt
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Runs all tokens of all chunks.

    Returns:
        Needed outputs by name, (N, ...) with the tokens of each row together, (B, ...) of those that are
        given once a run; of a large batch the candidates in place of what is only ranked; last states
        (B, ...).
    """
    needed = _needed_outputs(model.contract, ordered)
    counts = [rows.asked.token_count for rows in ordered]
    sizes = [len(rows) for rows in ordered]
    dtype = model.contract.input.dtype
    if counts[0] == counts[-1] and not _is_large(model.contract, ordered):
        tokens = _joined([rows.tokens for rows in ordered])
        outputs, after = _call(model, tokens.swapaxes(0, 1).astype(dtype, "C"), states, needed, halt)
        return {name: _by_row(outputs[name]) for name in needed}, dict(after)
    return _run_in_spans(model, ordered, np.repeat(counts, sizes), states, needed, halt)


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
    ordered: Sequence[Rows],
    counts: NDArray[np.int64],
    states: dict[str, NDArray[Any]],
    needed: tuple[str, ...],
    halt: Halt,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    shape = () if model.contract.input.kind == "token_id" else (model.contract.input.width,)
    flat = _joined([rows.tokens.reshape(-1, *shape) for rows in ordered])
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


def _ranked_at_once(contract: Contract, group: Sequence[Rows]) -> int:
    """Returns how many candidates to take of each call of a large batch; 0 if logits are kept whole."""
    is_whole = any(contract.ranked.name in rows.selection.tensors for rows in group if contract.ranked)
    return 0 if is_whole or not _is_large(contract, group) else max(rows.selection.top_k for rows in group)


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


def _needed_outputs(contract: Contract, group: Sequence[Rows]) -> tuple[str, ...]:
    needed: set[str] = set()
    for rows in group:
        needed.update(rows.selection.tensors)
        if rows.selection.top_k and contract.ranked is not None:
            needed.add(contract.ranked.name)
        if rows.selection.token_log_prob and contract.token_log_prob is not None:
            needed.add(contract.token_log_prob.name)
    return tuple(output.name for output in contract.outputs if output.name in needed)


def _outputs_of(
    rows: Rows,
    outputs: dict[str, NDArray[Any]],
    states: dict[str, NDArray[Any]],
    of_tokens: slice,
    of_rows: slice,
) -> Outputs:
    """Picks what some rows asked for."""
    selection, contract = rows.selection, rows.model.contract
    ids = log_probs = surprise = None
    specs = {output.name: output for output in contract.outputs}

    def picked(name: str) -> NDArray[Any]:
        return outputs[name][of_rows if specs[name].is_last else of_tokens]

    if selection.top_k:
        assert contract.ranked is not None, "bug: a selection ranks what the model does not have"
        if _TOP_IDS in outputs:
            part = of_rows if contract.ranked.is_last else of_tokens
            ids, log_probs = (outputs[name][part, : selection.top_k] for name in (_TOP_IDS, _TOP_LOG_PROBS))
        else:
            ids, log_probs = ranked_candidates(
                picked(contract.ranked.name), selection.top_k, contract.ranked.role
            )
    if selection.token_log_prob and contract.token_log_prob is not None:
        surprise = picked(contract.token_log_prob.name)
    return Outputs(
        row_count=len(rows),
        token_count=rows.asked.token_count,
        top_ids=ids,
        top_log_probs=log_probs,
        token_log_probs=surprise,
        tensors={name: picked(name) for name in selection.tensors},
        state={name: states[name][of_rows] for name in states} if selection.state else {},
    )
