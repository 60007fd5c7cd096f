"""Runs the chunks of a batch through a model and makes their replies and next records.

Rows are ordered by length, longest first, so that step t of all chunks longer than t is one call on
the first rows of the arrays. No I/O.
"""

from collections.abc import Sequence
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


class RowOutputs(NamedTuple):
    """What one chunk of k tokens gave, for the edge to encode.

    Attributes:
        token_count: k.
        top_ids: int32 (k, top_k), best first; None if not asked for.
        top_log_probs: float32 (k, top_k).
        token_log_probs: float32 (k,); None if not asked for.
        tensors: Output name -> (k, ...).
        state: State name -> array without a batch axis.
    """

    token_count: int
    top_ids: NDArray[np.int32] | None
    top_log_probs: NDArray[np.float32] | None
    token_log_probs: NDArray[np.float32] | None
    tensors: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]


class EncodeOutputs(Protocol):
    """Turns a row's outputs into the bytes that are stored and sent. Implemented by the edge."""

    def __call__(self, outputs: RowOutputs) -> bytes:
        """Returns the encoded outputs."""
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
    ranked = _BatchOutputs(outputs, ordered)
    state_bytes = rows.tobytes()
    size = model.contract.state_bytes
    return [
        _finish(
            step,
            state_bytes[index * size : (index + 1) * size],
            encode(ranked.row(index, states)),
        )
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
    """Runs all steps of all chunks.

    Returns:
        Needed outputs by name, (N, ...) with the tokens of each row together; last states (B, ...).
    """
    counts = [step.work.claim.token_count for step in ordered]
    states = ordered[0].session.rows.gather([step.session.slot for step in ordered])
    needed = _needed_outputs(model.contract, ordered)
    if counts[0] == 1:
        tokens = np.concatenate([step.work.tokens for step in ordered])
        outputs, next_states = model.step(tokens, states)
        return {name: outputs[name] for name in needed}, dict(next_states)
    return _run_chunks(model, ordered, counts, states, needed)


def _run_chunks(
    model: Model,
    ordered: Sequence[Step],
    counts: list[int],
    states: dict[str, NDArray[Any]],
    needed: list[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    tokens = np.concatenate([step.work.tokens for step in ordered])
    specs = {output.name: output for output in model.contract.outputs}
    collected = {
        name: np.empty((int(starts[-1]), *specs[name].shape), specs[name].dtype) for name in needed
    }
    active = len(ordered)
    for index in range(counts[0]):
        while counts[active - 1] <= index:
            active -= 1
        places = starts[:active] + index
        outputs, next_states = model.step(
            tokens[places], {name: array[:active] for name, array in states.items()}
        )
        for name in needed:
            collected[name][places] = outputs[name]
        for name, array in states.items():
            array[:active] = next_states[name]
    return collected, states


def _needed_outputs(contract: Contract, steps: Sequence[Step]) -> list[str]:
    needed: set[str] = set()
    for step in steps:
        selection = step.selection
        needed.update(selection.tensors)
        if selection.top_k and contract.logits is not None:
            needed.add(contract.logits.name)
        if selection.token_log_prob and contract.token_log_prob is not None:
            needed.add(contract.token_log_prob.name)
    return [output.name for output in contract.outputs if output.name in needed]


class _BatchOutputs:
    """The outputs of a batch, ranked, ready to be cut into rows."""

    def __init__(self, outputs: dict[str, NDArray[Any]], ordered: Sequence[Step]) -> None:
        self._outputs = outputs
        self._ordered = ordered
        self._contract = ordered[0].session.model.contract
        self._starts = np.concatenate(
            [[0], np.cumsum([step.work.claim.token_count for step in ordered])]
        ).tolist()
        top_k = max(step.selection.top_k for step in ordered)
        if top_k:
            assert self._contract.logits is not None
            logits = outputs[self._contract.logits.name]
            self._top_ids, self._top_log_probs = top_candidates(logits, top_k)

    def row(self, index: int, states: dict[str, NDArray[Any]]) -> RowOutputs:
        selection = self._ordered[index].selection
        rows = slice(self._starts[index], self._starts[index + 1])
        ids = log_probs = surprise = None
        if selection.top_k:
            ids = self._top_ids[rows, : selection.top_k]
            log_probs = self._top_log_probs[rows, : selection.top_k]
        if selection.token_log_prob:
            assert self._contract.token_log_prob is not None
            surprise = self._outputs[self._contract.token_log_prob.name][rows]
        return RowOutputs(
            token_count=rows.stop - rows.start,
            top_ids=ids,
            top_log_probs=log_probs,
            token_log_probs=surprise,
            tensors={name: self._outputs[name][rows] for name in selection.tensors},
            state={name: states[name][index] for name in states} if selection.state else {},
        )


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
    size = logits.shape[1]
    if top_k < size:
        candidates = np.argpartition(logits, size - top_k, axis=1)[:, size - top_k :]
    else:
        candidates = np.broadcast_to(np.arange(size), logits.shape)
    values = np.take_along_axis(logits, candidates, axis=1)
    order = np.lexsort((candidates, -values), axis=1)
    ids = np.take_along_axis(candidates, order, axis=1).astype(np.int32)
    values = np.take_along_axis(values, order, axis=1)
    peak = values[:, :1]
    normaliser = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return ids, values - normaliser
