"""What goes into the engine and what comes out: plain values, no behaviour but validation.

The edge makes a `Work` from a request; the engine answers it with an `Answer` or a ServiceError.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.rules import MAX_KEPT_REPLY_BYTES, Claim
from service.engine.served import check_named
from service.errors import InvalidRequest, ReplyTooLarge, ServiceError
from service.model.contract import Contract
from service.model.protocol import Model

ALL_TENSORS = "*"
DEFAULT_TOP_K = 5

_ENCODING_BYTES = 64
"""Upper bound on what the edge adds around the numbers of a reply, and around each of its tensors."""


class Selection(NamedTuple):
    """What a reply should hold.

    Attributes:
        top_k: So many likeliest next tokens after each token.
        token_log_prob: Log-probability of each token given all before it.
        tensors: Names of output tensors.
        state: The state after the chunk.
    """

    top_k: int = 0
    token_log_prob: bool = False
    tensors: tuple[str, ...] = ()
    state: bool = False


class Answer(NamedTuple):
    """The outcome of a chunk that is applied.

    Attributes:
        incarnation: Of the session.
        position: Tokens consumed, the chunk included.
        model_version: Version that ran.
        replayed: It had been applied before.
        outputs: What it gave, encoded by the edge.
    """

    incarnation: int
    position: int
    model_version: int
    replayed: bool
    outputs: bytes


@dataclass(slots=True, eq=False)
class Work:
    """One chunk on its way through the engine.

    Attributes:
        key: Store key of its session.
        claim: Position and identity, for the rules.
        kind: What the tokens are: bytes of text, ids, or features.
        tokens: int64 (k,) for text and ids, float32 (k, width) for features.
        answer: Called once, on the event loop, with the outcome; must not raise.
        model_name: Model named by the request; "" if none.
        model_version: Its version; 0 is any, or the newest where the session is opened.
        selection: What to return; None is the default of the model.
        deadline_s: Monotonic time after which the caller no longer waits.
        arrived_s: Monotonic time of arrival.
        is_cancelled: The caller has gone; skip it if it has not run yet.
        conflict_count: How often another writer came first.
        is_answered: `answer` was called.
    """

    key: bytes
    claim: Claim
    kind: Literal["text", "ids", "features"]
    tokens: NDArray[Any]
    answer: Callable[[Answer | ServiceError], None]
    model_name: str = ""
    model_version: int = 0
    selection: Selection | None = None
    deadline_s: float | None = None
    arrived_s: float = 0.0
    is_cancelled: bool = False
    conflict_count: int = 0
    is_answered: bool = False


def validate(work: Work, model: Model) -> Selection:
    """Checks a chunk against the model of its session, before it shares a batch with others.

    Returns:
        The selection, defaults and "*" filled in.

    Raises:
        ModelMismatch: The request names another model.
        InvalidRequest: Tokens or selection do not suit the model.
        ReplyTooLarge: The reply could not be kept for a retry.
    """
    check_named(model, work.model_name, work.model_version)
    _check_tokens(work, model.contract)
    return _checked(work.selection, model.contract, work.claim.token_count)


@functools.lru_cache(4096)
def _checked(selection: Selection | None, contract: Contract, token_count: int) -> Selection:
    """Completes a selection and checks it; callers ask for the same few again and again."""
    complete = _complete(selection, contract)
    size_bytes = reply_bytes(complete, contract, token_count)
    if size_bytes > MAX_KEPT_REPLY_BYTES:
        raise ReplyTooLarge(
            f"the reply would have up to {size_bytes} bytes, at most {MAX_KEPT_REPLY_BYTES} are kept "
            "for a retry: send fewer tokens in a chunk or ask for fewer outputs",
            field="outputs",
        )
    return complete


def reply_bytes(selection: Selection, contract: Contract, token_count: int) -> int:
    """Returns an upper bound on the encoded size of a reply."""
    per_token = 8 * selection.top_k + 4 * selection.token_log_prob
    chosen = [output for output in contract.outputs if output.name in selection.tensors]
    per_token += sum(output.size_bytes for output in chosen)
    fixed = _ENCODING_BYTES + sum(_tensor_overhead(output.name) for output in chosen)
    if selection.state:
        fixed += contract.state_bytes
        fixed += sum(_tensor_overhead(state.name) for state in contract.states)
    return fixed + token_count * per_token


def _tensor_overhead(name: str) -> int:
    return _ENCODING_BYTES + 4 * len(name)


def _check_tokens(work: Work, contract: Contract) -> None:
    vocabulary = contract.vocabulary
    if vocabulary is None:
        _check_features(work, contract.input.width)
    elif work.kind == "features":
        raise InvalidRequest("the model has a vocabulary: send text or ids, not features", field="tokens")
    elif work.kind == "text" and vocabulary.kind != "bytes":
        raise InvalidRequest("the model's vocabulary is not bytes: send ids, not text", field="tokens.text")
    elif work.kind == "ids":
        _check_ids(work.tokens, vocabulary.size)


def _check_features(work: Work, width: int) -> None:
    if work.kind != "features":
        raise InvalidRequest(
            f"the model has no vocabulary: send float32 features of width {width}", field="tokens"
        )
    if work.tokens.shape[1] != width:
        raise InvalidRequest(
            f"features have width {work.tokens.shape[1]}, the model takes {width}",
            field="tokens.features.shape",
        )
    if not np.isfinite(work.tokens).all():
        row = int(np.argmin(np.isfinite(work.tokens).all(axis=1)))
        raise InvalidRequest(f"features of token {row} hold NaN or infinity", field="tokens.features.data")


def _check_ids(ids: NDArray[Any], size: int) -> None:
    if ids.min() >= 0 and ids.max() < size:
        return
    index = int(np.argmax((ids < 0) | (ids >= size)))
    raise InvalidRequest(
        f"token {index} is {ids[index]}, the vocabulary has ids 0..{size - 1}",
        field=f"tokens.ids.values[{index}]",
    )


def _complete(selection: Selection | None, contract: Contract) -> Selection:
    every = tuple(output.name for output in contract.outputs)
    if selection is None:
        if contract.logits is not None:
            assert contract.vocabulary is not None
            return Selection(top_k=min(DEFAULT_TOP_K, contract.vocabulary.size))
        return Selection(tensors=every)
    if selection.top_k:
        _check_top_k(selection.top_k, contract)
    if selection.token_log_prob and contract.token_log_prob is None:
        raise InvalidRequest("the model has no token_log_prob output", field="outputs.token_log_prob")
    if ALL_TENSORS in selection.tensors:
        return selection._replace(tensors=every)
    for name in selection.tensors:
        if name not in every:
            raise InvalidRequest(
                f"the model has no output {name!r}; it has {', '.join(every)}",
                field="outputs.tensors",
            )
    return selection


def _check_top_k(top_k: int, contract: Contract) -> None:
    if contract.logits is None:
        raise InvalidRequest("the model has no logits to rank", field="outputs.top_k")
    size = contract.logits.shape[0]
    if not 0 <= top_k <= size:
        raise InvalidRequest(f"top_k is {top_k}, expected 0..{size}", field="outputs.top_k")
