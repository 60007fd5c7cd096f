"""Runs the chunks of a batch through a model and makes their replies and next records.

Rows are ordered by length, longest first, so that the chunks that have tokens left are always the first
rows of the arrays; they run together, as many tokens in one call as all of them have. No I/O.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.hot_state import HotSession, join_rows
from service.engine.rules import keep_replies
from service.engine.work import Selection, Work
from service.errors import ModelFailed, ServiceError, StateNotFinite
from service.model.contract import Contract
from service.model.protocol import Model
from service.store.record import KeptReply, Record

MAX_STEPS_PER_CALL = 4096
"""Tokens times rows in one call of the model; with 256 logits each they take 4 MiB."""

FEW = 8
"""Up to so many candidates are picked one by one."""


class Step(NamedTuple):
    """A chunk about to run.

    Attributes:
        work: The chunk.
        session: Its session, at the position where the chunk belongs.
        selection: What to return, completed.
    """

    work: Work
    session: HotSession
    selection: Selection


class GroupOutputs(NamedTuple):
    """What R chunks of k tokens gave, all with the same selection, for the edge to encode.

    Attributes:
        row_count: R.
        token_count: k.
        top_ids: int32 (R * k, top_k), best first; None if not asked for.
        top_log_probs: float32 (R * k, top_k).
        token_log_probs: float32 (R * k,); None if not asked for.
        tensors: Output name -> (R * k, ...).
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

    def __call__(self, outputs: GroupOutputs) -> list[bytes]:
        """Returns the encoded outputs of each row."""
        ...


@dataclass(slots=True)
class Ran:
    """What came of running one chunk: a record to commit, or the reason there is none."""

    step: Step
    outcome: Record | ServiceError


def run_batch(model: Model, steps: Sequence[Step], encode: EncodeOutputs) -> list[Ran]:
    """Runs chunks of distinct sessions of one model.

    Never raises on account of the model or of one chunk: a model that fails, or gives shapes that its
    contract does not have, fails this batch; a state that is not finite fails its own row.

    Returns:
        One result per step, in an order of its own.
    """
    ordered = sorted(steps, key=lambda step: -step.work.claim.token_count)
    try:
        outputs, states = _run(model, ordered)
        rows = join_rows(model.contract, states)
        assert rows.shape == (len(ordered), model.contract.state_bytes), "state of another shape"
    except Exception as error:  # noqa: BLE001 -- a model may raise anything; its batch fails, no more
        reason = f"model {model.name} version {model.version} failed: {type(error).__name__}: {error}"
        return [Ran(step, ModelFailed(reason)) for step in ordered]
    finite = _finite_rows(states)
    encoded = _encode_groups(ordered, outputs, states, encode)
    state_bytes = rows.tobytes()
    size = model.contract.state_bytes
    return [
        _finish(step, state_bytes[index * size : (index + 1) * size], encoded[index])
        if finite[index]
        else Ran(step, _not_finite(step))
        for index, step in enumerate(ordered)
    ]


def _finish(step: Step, state: bytes, outputs: bytes) -> Ran:
    session, claim = step.session, step.work.claim
    position = session.position + claim.token_count
    reply = KeptReply(position, claim.token_count, claim.digest, outputs)
    try:
        kept = keep_replies(session.replies, reply, claim)
    except ServiceError as error:
        return Ran(step, error)
    return Ran(step, Record(session.incarnation, position, session.model.fingerprint, state, kept))


def _not_finite(step: Step) -> StateNotFinite:
    count = step.work.claim.token_count
    return StateNotFinite(
        f"after these {count} tokens the state would hold NaN or infinity; nothing was changed",
        field="tokens",
    )


def _finite_rows(states: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in states.values()]
    combined: NDArray[np.bool_] = np.logical_and.reduce(finite)
    return combined


def _run(model: Model, ordered: Sequence[Step]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Runs all tokens of all chunks.

    Returns:
        Needed outputs by name, (N, ...) with the tokens of each row together; last states (B, ...).
    """
    counts = [step.work.claim.token_count for step in ordered]
    states = ordered[0].session.rows.gather([step.session.slot for step in ordered])
    needed = _needed_outputs(model.contract, ordered)
    tokens = np.concatenate([step.work.tokens for step in ordered])
    if counts[0] == counts[-1] and len(tokens) <= MAX_STEPS_PER_CALL:
        in_time = tokens.reshape(len(counts), counts[0], *tokens.shape[1:]).swapaxes(0, 1)
        outputs, next_states = model.run(np.ascontiguousarray(in_time), states)
        return {name: _by_row(outputs[name]) for name in needed}, dict(next_states)
    starts = np.concatenate([[0], np.cumsum(counts)])
    specs = {output.name: output for output in model.contract.outputs}
    collected = {name: np.empty((len(tokens), *specs[name].shape), specs[name].dtype) for name in needed}
    for begin, end, active in _spans(counts):
        places = starts[:active] + np.arange(begin, end)[:, np.newaxis]
        outputs, next_states = model.run(
            tokens[places], {name: array[:active] for name, array in states.items()}
        )
        for name in needed:
            collected[name][places] = outputs[name]
        for name, array in states.items():
            array[:active] = next_states[name]
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


def _needed_outputs(contract: Contract, steps: Sequence[Step]) -> list[str]:
    needed: set[str] = set()
    for selection in {step.selection for step in steps}:
        needed.update(selection.tensors)
        if selection.top_k and contract.logits is not None:
            needed.add(contract.logits.name)
        if selection.token_log_prob and contract.token_log_prob is not None:
            needed.add(contract.token_log_prob.name)
    return [output.name for output in contract.outputs if output.name in needed]


def _encode_groups(
    ordered: Sequence[Step],
    outputs: dict[str, NDArray[Any]],
    states: dict[str, NDArray[Any]],
    encode: EncodeOutputs,
) -> list[bytes]:
    """Ranks the next tokens, and encodes neighbouring rows of the same length and selection together."""
    contract = ordered[0].session.model.contract
    top_k = max(step.selection.top_k for step in ordered)
    top_ids = top_log_probs = None
    if top_k:
        assert contract.logits is not None, "bug: a selection ranks what the model does not have"
        top_ids, top_log_probs = top_candidates(outputs[contract.logits.name], top_k)
    encoded: list[bytes] = []
    row = token = 0
    for (count, selection), group in itertools.groupby(ordered, _shape_of_reply):
        row_end = row + sum(1 for _ in group)
        token_end = token + (row_end - row) * count
        tokens, rows = slice(token, token_end), slice(row, row_end)
        ids = log_probs = surprise = None
        if selection.top_k and top_ids is not None and top_log_probs is not None:
            ids = top_ids[tokens, : selection.top_k]
            log_probs = top_log_probs[tokens, : selection.top_k]
        if selection.token_log_prob and contract.token_log_prob is not None:
            surprise = outputs[contract.token_log_prob.name][tokens]
        encoded += encode(
            GroupOutputs(
                row_count=row_end - row,
                token_count=count,
                top_ids=ids,
                top_log_probs=log_probs,
                token_log_probs=surprise,
                tensors={name: outputs[name][tokens] for name in selection.tensors},
                state={name: states[name][rows] for name in states} if selection.state else {},
            )
        )
        row, token = row_end, token_end
    return encoded


def _shape_of_reply(step: Step) -> tuple[int, Selection]:
    return step.work.claim.token_count, step.selection


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
    if not np.isfinite(values).all():  # picking marks what it took by -inf
        ids, values = _sort_largest(logits, top_k)
    peak = values[:, :1]
    scaled = logits - peak
    np.exp(scaled, out=scaled)
    values -= peak + np.log(scaled.sum(axis=1, keepdims=True))
    return ids, values


def _pick_largest(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Takes the largest, one after the other; of equal ones the smallest id."""
    count = len(logits)
    ids = np.empty((count, top_k), np.int32)
    values = np.empty((count, top_k), np.float32)
    left, rows = logits.copy(), np.arange(count)
    for place in range(top_k):
        best = left.argmax(axis=1)
        ids[:, place] = best
        values[:, place] = left[rows, best]
        left[rows, best] = -np.inf
    return ids, values


def _sort_largest(logits: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Takes the largest and sorts them by value, then by id."""
    count, size = logits.shape
    if top_k < size:
        candidates = logits.argpartition(size - top_k, axis=1)[:, size - top_k :]
        candidates.sort(axis=1)
    else:
        candidates = np.broadcast_to(np.arange(size), logits.shape)
    rows = np.arange(count)[:, np.newaxis]
    values = logits[rows, candidates]
    order = (-values).argsort(axis=1, kind="stable")
    return candidates[rows, order].astype(np.int32), values[rows, order]
