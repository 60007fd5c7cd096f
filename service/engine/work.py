"""What goes into the engine and what comes out: plain values, no behaviour but validation.

The edge makes a `Work` from a request; the engine answers it with an `Answer` or a ServiceError.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.common.errors import InvalidRequest, ReplyTooLarge, ServiceError
from service.engine.rules import MAX_KEPT_REPLY_BYTES, Claim
from service.engine.served import check_named
from service.model.contract import Contract
from service.model.protocol import Model
from service.store.protocol import AckLevel

_log = logging.getLogger(__name__)

ALL_TENSORS = "*"
DEFAULT_TOP_K = 5

MAX_REMEMBERED = 1024
"""So many valid selections, each at a length of chunk, are remembered as checked."""

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
        digest: History digest there.
        model_version: Version that ran.
        replayed: It had been applied before.
        outputs: What it gave, encoded by the edge.
        ack_level: How durable it is.
    """

    incarnation: int
    position: int
    digest: int
    model_version: int
    replayed: bool
    outputs: bytes
    ack_level: AckLevel = AckLevel.MEMORY


class Asked(NamedTuple):
    """What chunks that share a block have in common.

    Attributes:
        kind: What the tokens are: bytes of text, ids, or features.
        token_count: k >= 1.
        width: Features per token; 1 for text and ids.
        model_name: Model named by the request; "" if none.
        model_version: Its version; 0 is any, or the newest where the session is opened.
        selection: What to return; None is the default of the model.
        ack_level: How durable the commit must be before the answer; None is the default of the server.
    """

    kind: Literal["text", "ids", "features"]
    token_count: int
    width: int = 1
    model_name: str = ""
    model_version: int = 0
    selection: Selection | None = None
    ack_level: AckLevel | None = None

    @property
    def element_count(self) -> int:
        """Elements of a chunk's tokens, as a history digest counts them."""
        return self.token_count * self.width


@dataclass(slots=True, eq=False)
class Work:
    """One chunk on its way through the engine.

    Attributes:
        key: Store key of its session.
        asked: What it asks.
        claim: Position and identity, for the rules.
        raw: The tokens, (k,) or (k, width), row-major; dtype by kind, see `block.TOKEN_DTYPES`.
        answer: Called once, on the event loop, with this work and its outcome.
        request: What the caller wants to find here again.
        deadline_s: Monotonic time after which the caller no longer waits.
        arrived_s: Monotonic time of arrival.
        is_cancelled: The caller has gone; skip it if it has not run yet.
        conflict_count: How often another writer came first.
        is_answered: `answer` was called.
    """

    key: bytes
    asked: Asked
    claim: Claim
    raw: bytes
    answer: "Callable[[Work, Answer | ServiceError], None]"
    request: Any = None
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    is_cancelled: bool = False
    conflict_count: int = 0
    is_answered: bool = False

    def settle(self, outcome: Answer | ServiceError) -> None:
        """Gives the outcome to the caller; a caller that cannot take it must not hurt its neighbours."""
        self.is_answered = True
        try:
            self.answer(self, outcome)
        except Exception:  # noqa: BLE001 -- logged, whatever it is
            _log.exception("bug: a caller could not take its answer")


def validate(asked: Asked, model: Model) -> Selection:
    """Checks what chunks ask against the model of their sessions, before they share a batch with others.

    Returns:
        The selection, defaults and "*" filled in.

    Raises:
        ModelMismatch: The request names another model.
        InvalidRequest: The kind of tokens or the selection does not suit the model.
        ReplyTooLarge: The reply could not be kept for a retry.
    """
    check_named(model, asked.model_name, asked.model_version)
    _check_kind(asked, model.contract)
    return _checked(_named(asked.selection, model.contract), model.contract, asked.token_count)


def _named(selection: Selection | None, contract: Contract) -> Selection | None:
    """Returns the selection with each tensor once, all of them the model's own; "*" is filled in.

    So what is remembered of a selection is as small as the model's own list of outputs.
    """
    if selection is None or not selection.tensors:
        return selection
    every = {output.name: output.name for output in contract.outputs}
    if ALL_TENSORS in selection.tensors:
        return selection._replace(tensors=tuple(every))
    try:
        return selection._replace(tensors=tuple(dict.fromkeys(every[name] for name in selection.tensors)))
    except KeyError as unknown:
        raise InvalidRequest(
            f"the model has no output {unknown.args[0]!r}; it has {', '.join(every)}",
            field="outputs.tensors",
        ) from None


@functools.lru_cache(MAX_REMEMBERED)
def _checked(selection: Selection | None, contract: Contract, token_count: int) -> Selection:
    """Completes a selection and checks it; callers ask for the same few again and again.

    Only what passes is remembered, and only what `_named` gives may come here.
    """
    complete = _complete(selection, contract)
    size_bytes = reply_bytes(complete, contract, token_count)
    if size_bytes > MAX_KEPT_REPLY_BYTES:
        raise ReplyTooLarge(
            f"the reply would have up to {size_bytes} bytes, at most {MAX_KEPT_REPLY_BYTES} are kept "
            "for a retry: send fewer tokens in a chunk or ask for fewer outputs",
            field="outputs",
        )
    return complete


def largest_reply_bytes(asked: Asked, contract: Contract) -> int:
    """Returns an upper bound on the reply to chunks, also where the selection does not suit the model.

    Nothing of it is remembered: callers write what they like here, and it is a few additions.
    """
    selection = asked.selection or _complete(None, contract)
    if ALL_TENSORS in selection.tensors:
        selection = selection._replace(tensors=tuple(output.name for output in contract.outputs))
    return reply_bytes(selection, contract, asked.token_count)


def reply_bytes(selection: Selection, contract: Contract, token_count: int) -> int:
    """Returns an upper bound on the encoded size of a reply."""
    per_token, fixed = 8 * selection.top_k + 4 * selection.token_log_prob, _ENCODING_BYTES
    if selection.tensors:
        names = set(selection.tensors)
        chosen = [output for output in contract.outputs if output.name in names]
        per_token += sum(output.size_bytes for output in chosen)
        fixed += sum(_tensor_overhead(output.name) for output in chosen)
    if selection.state:
        fixed += contract.state_bytes
        fixed += sum(_tensor_overhead(state.name) for state in contract.states)
    return fixed + token_count * per_token


def _tensor_overhead(name: str) -> int:
    return _ENCODING_BYTES + 4 * len(name)


def _check_kind(asked: Asked, contract: Contract) -> None:
    vocabulary, width = contract.vocabulary, contract.input.width
    if vocabulary is None:
        if asked.kind != "features":
            raise InvalidRequest(
                f"the model has no vocabulary: send float32 features of width {width}", field="tokens"
            )
        if asked.width != width:
            raise InvalidRequest(
                f"features have width {asked.width}, the model takes {width}",
                field="tokens.features.shape",
            )
    elif asked.kind == "features":
        raise InvalidRequest("the model has a vocabulary: send text or ids, not features", field="tokens")
    elif asked.kind == "text" and vocabulary.kind != "bytes":
        raise InvalidRequest("the model's vocabulary is not bytes: send ids, not text", field="tokens.text")


def check_tokens(asked: Asked, tokens: NDArray[Any], contract: Contract) -> dict[int, InvalidRequest]:
    """Checks the values of tokens.

    Args:
        asked: Checked by `validate`.
        tokens: Of B rows, see `block.Block.tokens`.
        contract: Of the model.

    Returns:
        Why rows cannot run, by row.
    """
    if asked.kind == "text":
        return {}
    if asked.kind == "features":
        is_right = np.isfinite(tokens).all(axis=2)
        for column, id_count in contract.id_columns:
            ids = tokens[..., column]
            is_right &= (ids >= 0) & (ids < id_count) & (ids == np.floor(ids))
    else:
        assert contract.vocabulary is not None, "bug: ids passed without a vocabulary"
        is_right = (tokens >= 0) & (tokens < contract.vocabulary.size)
    if is_right.all():
        return {}
    wrong = {int(row): int(is_right[row].argmin()) for row in np.flatnonzero(~is_right.all(axis=1))}
    return {row: _wrong_token(asked, tokens[row], place, contract) for row, place in wrong.items()}


def _wrong_token(asked: Asked, tokens: NDArray[Any], place: int, contract: Contract) -> InvalidRequest:
    if asked.kind == "features" or contract.vocabulary is None:
        for column, id_count in contract.id_columns:
            if (value := tokens[place][column]) not in range(id_count):
                return InvalidRequest(
                    f"column {column} of token {place} is {value:g}, expected is an id 0..{id_count - 1}",
                    field="tokens.features.data",
                )
        return InvalidRequest(
            f"features of token {place} hold NaN or infinity", field="tokens.features.data"
        )
    return InvalidRequest(
        f"token {place} is {tokens[place]}, the vocabulary has ids 0..{contract.vocabulary.size - 1}",
        field=f"tokens.ids.values[{place}]",
    )


def _complete(selection: Selection | None, contract: Contract) -> Selection:
    if selection is None:
        if contract.ranked is not None:
            return Selection(top_k=min(DEFAULT_TOP_K, math.prod(contract.ranked.shape)))
        return Selection(tensors=tuple(output.name for output in contract.outputs))
    if selection.top_k:
        _check_top_k(selection.top_k, contract)
    if selection.token_log_prob and contract.token_log_prob is None:
        raise InvalidRequest("the model has no token_log_prob output", field="outputs.token_log_prob")
    return selection


def _check_top_k(top_k: int, contract: Contract) -> None:
    if contract.ranked is None:
        raise InvalidRequest(
            "the model has no output of role logits, probs or log_probs to rank", field="outputs.top_k"
        )
    size = math.prod(contract.ranked.shape)
    if not 0 <= top_k <= size:
        raise InvalidRequest(f"top_k is {top_k}, expected 0..{size}", field="outputs.top_k")
