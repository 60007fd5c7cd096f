"""Runs the chunks of a batch through a model. No I/O.

Rows are ordered by length, longest first, so that the chunks that have tokens left are always the first
rows of the arrays; they run together, as many tokens in one call as all of them have.

A contract was held against what the graph declares when it was loaded; what a graph computes may have
other extents, and would then be cut up wrongly between neighbours. So results are checked where they enter.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ModelFailed
from service.engine.cache import join_rows, split_rows
from service.engine.checks import needed_outputs
from service.engine.ranking import ranked_candidates
from service.engine.rows import Rows
from service.engine.sampling import draw
from service.model.contract import Contract, OutputSpec, StateSpec
from service.model.protocol import Arrays, Halt, Model, SubwordModel
from service.store.outputs import Outputs

MAX_STEPS_PER_CALL = 4096
"""Tokens times rows in one call of the model."""

MAX_OUTPUT_BYTES = 16 << 20
"""Of the outputs of one call: 4,096 steps with 1,024 logits, or fewer steps with more. A batch that gives
more in all is ranked call by call and lets go of what it has ranked, so that neither the number of its
tokens nor the size of the vocabulary is a matter of memory."""

Encode = Callable[[Outputs], NDArray[np.uint8]]
"""Turns outputs into the bytes that are stored and sent, of each row: `store.outputs.encode_outputs`."""

_TOP_IDS, _TOP_LOG_PROBS, _LAST = "\0ids", "\0log_probs", "\0last"
"""Stand among the outputs in place of what has been ranked, and of what was ranked last in each row; no
output has such a name."""


class WrongResult(Exception):
    """A tensor is missing or not what the contract says; the message names it."""


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
    together = _together(model.contract, group)
    ranked = model.contract.ranked
    if ranked is None or not together.is_large:
        _run_together(model, group, together, encode, halt)
        return
    whole = [rows for rows in group if ranked.name in rows.needs.selection.tensors]
    others = [rows for rows in group if ranked.name not in rows.needs.selection.tensors]
    for part in filter(None, (others, whole)):  # who wants the whole of what others only want ranked
        _run_together(model, part, _together(model.contract, part), encode, halt)


class _Together(NamedTuple):
    """What rows that run together take.

    Attributes:
        needed: Names of the outputs.
        most_steps: Tokens times rows that one call may have.
        is_large: They have more.
    """

    needed: tuple[str, ...]
    most_steps: int
    is_large: bool


def _together(contract: Contract, group: Sequence[Rows]) -> _Together:
    if len(group) == 1:
        [rows] = group
        needed, step_bytes = rows.needs.outputs, rows.needs.step_bytes
        step_count = len(rows.keys) * rows.asked.token_count
    else:
        needed, step_bytes = needed_outputs(contract, [rows.needs.selection for rows in group])
        step_count = sum(len(rows) * rows.asked.token_count for rows in group)
    most_steps = max(1, min(MAX_STEPS_PER_CALL, MAX_OUTPUT_BYTES // max(1, step_bytes)))
    return _Together(needed, most_steps, step_count > most_steps)


def _run_together(
    model: Model, group: Sequence[Rows], together: _Together, encode: Encode, halt: Halt
) -> None:
    """Runs rows that share calls of the model; see `run_batch`."""
    if len(group) > 1:
        group = sorted(group, key=lambda rows: -rows.asked.token_count)
    try:
        states = split_rows(model.contract, _joined(group, "states"))
        if together.is_large or group[0].asked.token_count > group[-1].asked.token_count:
            outputs, after = _run_in_spans(model, group, together, states, halt)
        else:
            outputs, after = _run_at_once(model, group, together.needed, states, halt)
        if model.contract.texts and any(rows.needs.selection.generates for rows in group):
            outputs = {**outputs, _LAST: cast(SubwordModel, model).settled(after, halt)}
        next_states = join_rows(model.contract, after)
    except Exception as error:  # a model may raise anything; its batch fails, no more
        reason = f"model {model.name} version {model.version} failed: {type(error).__name__}: {error}"
        raise ModelFailed(reason) from error
    finite = _finite_rows(after)
    row = token = 0
    for rows in group:
        rows_end = row + len(rows.keys)
        tokens_end = token + len(rows.keys) * rows.asked.token_count
        part = slice(row, rows_end)
        rows.outputs = encode(_outputs_of(rows, outputs, after, slice(token, tokens_end), part))
        rows.next_states = next_states[part]
        rows.is_finite = None if finite is None else finite[part]
        del rows.states  # what comes next finds their memory free
        row, token = rows_end, tokens_end


def _joined(group: Sequence[Rows], name: str) -> NDArray[Any]:
    """Returns a column of rows, one below the other."""
    if len(group) == 1:
        column: NDArray[Any] = getattr(group[0], name)
        return column
    return np.concatenate([getattr(rows, name) for rows in group])


def _finite_rows(states: Arrays) -> NDArray[np.bool_] | None:
    """Tells which rows have neither NaN nor infinity; None if all."""
    for array in states.values():
        flat = array.ravel()
        if not math.isfinite(flat.dot(flat)):  # one product says it of all, but where it overflows
            break
    else:
        return None
    finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in states.values()]
    rows: NDArray[np.bool_] = np.logical_and.reduce(finite)
    return None if rows.all() else rows


def _run_at_once(
    model: Model, group: Sequence[Rows], needed: tuple[str, ...], states: Arrays, halt: Halt
) -> tuple[Arrays, Arrays]:
    """Runs chunks of one length by one call.

    Returns:
        Needed outputs by name, (N, ...) with the tokens of each row together, (B, ...) of those that are
        given once a run; last states (B, ...).
    """
    tokens = _joined(group, "tokens").swapaxes(0, 1).astype(model.contract.input.dtype, "C")
    outputs, after = _call(model, tokens, states, needed, halt)
    by_row = {}
    for name in needed:
        output = outputs[name].swapaxes(0, 1)
        by_row[name] = output.reshape(-1, *output.shape[2:])
    return by_row, after


def _call(
    model: Model, tokens: NDArray[Any], states: Arrays, needed: tuple[str, ...], halt: Halt
) -> tuple[Arrays, Arrays]:
    """Runs a model and holds what it gave against its contract."""
    outputs, after = model.run(tokens, states, needed, halt)
    token_count, row_count = tokens.shape[:2]
    for name in needed:
        output = model.contract.outputs_by_name[name]
        shape = (1 if output.is_last else token_count, row_count, *output.shape)
        if (given := outputs.get(name)) is None or given.shape != shape or given.dtype != output.dtype:
            raise _wrong("output", output, given, shape)
    for state in model.contract.states:
        shape = (row_count, *state.shape)
        if (given := after.get(state.name)) is None or given.shape != shape or given.dtype != state.dtype:
            raise _wrong("state", state, given, shape)
    return outputs, after


def _wrong(
    what: str, spec: OutputSpec | StateSpec, given: NDArray[Any] | None, shape: tuple[int, ...]
) -> WrongResult:
    if given is None:
        return WrongResult(f"{what} {spec.name!r} is missing")
    return WrongResult(
        f"{what} {spec.name!r} is {given.dtype.name} {given.shape}, "
        f"the contract says {spec.dtype.name} {shape}"
    )


def _run_in_spans(
    model: Model, group: Sequence[Rows], together: _Together, states: dict[str, NDArray[Any]], halt: Halt
) -> tuple[Arrays, Arrays]:
    """Runs chunks of several lengths, or many tokens, by several calls.

    Returns:
        As `_run_at_once`; of a large batch the candidates in place of what is only ranked.
    """
    contract, needed = model.contract, together.needed
    shape = () if contract.input.kind == "token_id" else (contract.input.width,)
    tokens = np.concatenate([rows.tokens.reshape(-1, *shape) for rows in group]).astype(
        contract.input.dtype
    )
    counts = np.repeat([rows.asked.token_count for rows in group], [len(rows) for rows in group])
    starts = np.concatenate([[0], np.cumsum(counts)])
    specs = contract.outputs_by_name
    top_k = _ranked_at_once(contract, group) if together.is_large else 0
    draws = together.is_large and _draws(contract, group)
    is_last = {name: specs[name].is_last for name in needed} | {_LAST: True}
    if contract.ranked is not None:
        is_last |= dict.fromkeys((_TOP_IDS, _TOP_LOG_PROBS), contract.ranked.is_last)
    collected: dict[str, NDArray[Any]] = {}
    for begin, end, active in _spans(counts.tolist(), together.most_steps):
        places = starts[:active] + np.arange(begin, end)[:, np.newaxis]
        active_states = {name: array[:active] for name, array in states.items()}
        outputs, after = _call(model, tokens[places], active_states, needed, halt)
        given = {name: outputs[name].reshape(-1, *specs[name].shape) for name in needed}
        if (top_k or draws) and (ranked := contract.ranked) is not None:
            values = given.pop(ranked.name)
            if draws:  # what a row has in its last span stays
                given[_LAST] = outputs[ranked.name][-1]
            if top_k:
                ids, log_probs = ranked_candidates(values, top_k, ranked.role)
                given |= {_TOP_IDS: ids, _TOP_LOG_PROBS: log_probs}
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
    selections = [rows.needs.selection for rows in group]
    if contract.ranked is None or any(contract.ranked.name in one.tensors for one in selections):
        return 0
    return max(selection.top_k for selection in selections)


def _draws(contract: Contract, group: Sequence[Rows]) -> bool:
    """Whether tokens are drawn from what the model gives after the last token of some rows."""
    is_drawn = contract.feedback is None and not contract.texts
    return is_drawn and any(rows.needs.selection.generates for rows in group)


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


def _outputs_of(rows: Rows, outputs: Arrays, states: Arrays, of_tokens: slice, of_rows: slice) -> Outputs:
    """Picks what some rows asked for."""
    selection, contract = rows.needs.selection, rows.model.contract
    if selection.generates:
        return _following(rows, outputs, of_tokens, of_rows)
    picked = {}
    for name, array in outputs.items():
        spec = contract.outputs_by_name.get(name, contract.ranked)  # candidates stand for what was ranked
        picked[name] = array[of_rows if spec is not None and spec.is_last else of_tokens]
    ids = log_probs = surprise = None
    if selection.top_k:
        assert contract.ranked is not None, "bug: a selection ranks what the model does not have"
        if _TOP_IDS in picked:
            ids, log_probs = (picked[name][:, : selection.top_k] for name in (_TOP_IDS, _TOP_LOG_PROBS))
        else:
            ids, log_probs = ranked_candidates(
                picked[contract.ranked.name], selection.top_k, contract.ranked.role
            )
    if selection.token_log_prob and contract.token_log_prob is not None:
        surprise = picked[contract.token_log_prob.name]
    return Outputs(
        row_count=len(rows.keys),
        token_count=rows.asked.token_count,
        top_ids=ids,
        top_log_probs=log_probs,
        token_log_probs=surprise,
        tensors={name: picked[name] for name in selection.tensors} if selection.tensors else {},
        state={name: states[name][of_rows] for name in states} if selection.state else {},
    )


def _following(rows: Rows, outputs: Arrays, of_tokens: slice, of_rows: slice) -> Outputs:
    """Returns what follows the last token of each row: a drawn token, or the output that is fed back."""
    contract, top_k = rows.model.contract, rows.needs.selection.top_k
    following = Outputs(len(rows.keys), rows.asked.token_count, None, None, None, {}, {})
    output = contract.feedback or contract.ranked
    assert output is not None, "bug: a model generates that cannot"
    if _LAST in outputs and contract.feedback is None:
        values = outputs[_LAST][of_rows]
    else:
        given = outputs[output.name][of_rows if output.is_last else of_tokens]
        values = given.reshape(len(rows.keys), -1, *given.shape[1:])[:, -1]
    if contract.feedback is not None:
        return following._replace(tensors={output.name: values})
    assert rows.chunks is not None, "bug: rows of a message generate"
    samples = [chunk.sample for chunk in rows.chunks if chunk.sample is not None]
    drawn = draw(values, output.role, samples, rows.stamps[:, 1] + rows.asked.token_count)
    following = following._replace(sampled_ids=drawn.ids, sampled_log_probs=drawn.log_probs)
    if top_k:
        ids, log_probs = ranked_candidates(values, top_k, output.role)
        following = following._replace(top_ids=ids, top_log_probs=log_probs)
    return following
