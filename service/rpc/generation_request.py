"""What a Generate request asks, checked: first by itself, then against the session's model. Pure."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest
from holdfast.history_digest import MAX_NUMBER
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.asked import Asked, Selection, TokenKind
from service.engine.checks import check_generates
from service.engine.sampling import Options
from service.model.contract import Contract
from service.rpc import codec
from service.store.record import MAX_POSITION

MAX_TOKENS = 65536
MAX_SAID_IDS = 1024
MAX_STOP_IDS = 1024
MAX_STOP_TEXTS = 16
MAX_STOP_TEXT_BYTES = 64

MAX_PROBED = 4096
"""Ids that are weighed one by one where nothing else says what follows."""


class Limits(NamedTuple):
    """When a generation ends; counts include what earlier calls have emitted of it.

    Attributes:
        max_tokens: It has this many.
        min_tokens: It does not stop before this many.
        pause_after: Of this call; 0 is none.
        stop_ids: Drawing one ends it.
        stop_texts: Emitting one ends it.
    """

    max_tokens: int
    min_tokens: int
    pause_after: int
    stop_ids: tuple[int, ...]
    stop_texts: tuple[bytes, ...]


class Wanted(NamedTuple):
    """A generation, or a part of one, as asked.

    Attributes:
        key: Store key of the session.
        asked: What every chunk of it asks; its tokens are those of the prompt, if there is one.
        prompt: Raw tokens; b"" is none.
        position: Tokens before the prompt; None is "append".
        incarnation: Meant by the client; 0 is any.
        digest: History digest meant at the position; 0 is any.
        limits: When it ends.
        options: How tokens are drawn; None where the request does not say.
        seed: Of the random numbers.
        said: Ids that the repetition penalty is about beside those of the prompt.
        prompt_ids: Those of the prompt.
        emitted_count: Tokens of it that earlier calls have emitted.
        emitted_text: The end of their text.
        may_join: Events may share a message.
    """

    key: bytes
    asked: Asked
    prompt: bytes
    position: int | None
    incarnation: int
    digest: int
    limits: Limits
    options: Options | None
    seed: int
    said: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    emitted_count: int
    emitted_text: bytes
    may_join: bool

    @property
    def top_k(self) -> int:
        """So many likeliest tokens with each token."""
        return 0 if self.asked.selection is None else self.asked.selection.top_k


def read_request(request: pb.GenerateRequest, tenant: str, max_chunk_tokens: int) -> Wanted:
    """Reads a request and refuses what is wrong whatever its session is.

    Args:
        request: As received.
        tenant: Of the caller.
        max_chunk_tokens: Most tokens of the prompt.

    Raises:
        InvalidRequest: See there.
    """
    key = codec.key_of(tenant, request.session_id)
    level = codec.check_model_and_level(request, "")
    position = request.position if request.HasField("position") else None
    if position is None and request.history_digest:
        raise InvalidRequest("history_digest is given without position", field="history_digest")
    _check_range("position", position or 0, 0, MAX_POSITION)
    _check_range("incarnation", request.incarnation, 0, MAX_NUMBER)
    _check_range("history_digest", request.history_digest, 0, MAX_NUMBER)
    kind: TokenKind = "ids"
    tokens, count, width = b"", 1, 1
    prompt_ids: list[int] = []
    _check_count("sampling.said_ids", len(request.sampling.said_ids), MAX_SAID_IDS)
    if request.HasField("prompt"):
        kind, found, count, width = codec.to_tokens(request.prompt, "prompt")
        _check_size("prompt", count, 1, max_chunk_tokens, "tokens")
        tokens = found if isinstance(found, bytes) else found.tobytes()
        if kind != "features":
            prompt_ids = list(found) if isinstance(found, bytes) else found.tolist()
    _check_range("top_k", request.top_k, 0, codec.MAX_INT32)
    selection = Selection(request.top_k, generates=True)
    return Wanted(
        key,
        Asked(kind, count, width, request.model.name, request.model.version, selection, level),
        tokens,
        position,
        request.incarnation,
        request.history_digest,
        _limits(request),
        _options(request.sampling) if request.HasField("sampling") else None,
        request.sampling.seed,
        tuple(dict.fromkeys(request.sampling.said_ids)),
        tuple(dict.fromkeys(prompt_ids)),
        request.emitted_tokens,
        request.emitted_text,
        request.may_join,
    )


def _limits(request: pb.GenerateRequest) -> Limits:
    _check_range("max_tokens", request.max_tokens, 1, MAX_TOKENS)
    _check_range("min_tokens", request.min_tokens, 0, request.max_tokens, "(max_tokens)")
    _check_range("emitted_tokens", request.emitted_tokens, 0, request.max_tokens - 1, "(max_tokens - 1)")
    _check_range("pause_after", request.pause_after, 0, codec.MAX_INT32)
    _check_size("emitted_text", len(request.emitted_text), 0, MAX_STOP_TEXT_BYTES, "bytes")
    _check_count("stop_ids", len(request.stop_ids), MAX_STOP_IDS)
    _check_count("stop_texts", len(request.stop_texts), MAX_STOP_TEXTS)
    for number, text in enumerate(request.stop_texts):
        _check_size(f"stop_texts[{number}]", len(text), 1, MAX_STOP_TEXT_BYTES, "bytes")
    return Limits(
        request.max_tokens,
        request.min_tokens,
        request.pause_after,
        tuple(dict.fromkeys(request.stop_ids)),
        tuple(request.stop_texts),
    )


def _options(sampling: pb.Sampling) -> Options:
    options = Options(
        sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
        sampling.temperature if sampling.HasField("temperature") else 1.0,
        sampling.top_k,
        sampling.top_p if sampling.HasField("top_p") else 1.0,
        sampling.min_p,
    )
    rules = (
        ("repetition_penalty", options.penalty, 0 < options.penalty < math.inf, "a number > 0"),
        ("temperature", options.temperature, 0 <= options.temperature < math.inf, "a number >= 0"),
        ("top_k", options.top_k, options.top_k >= 0, "0 (all), or a number of tokens"),
        ("top_p", options.top_p, 0 < options.top_p <= 1, "a probability > 0, at most 1"),
        ("min_p", options.min_p, 0 <= options.min_p <= 1, "0..1"),
        ("seed", sampling.seed, sampling.seed >= 0, "a number >= 0"),
    )
    for name, value, is_right, expected in rules:
        if not is_right:
            raise InvalidRequest(f"{name} is {value:g}, expected {expected}", field=f"sampling.{name}")
    return options


def check_against(wanted: Wanted, contract: Contract) -> None:
    """Refuses what the session's model cannot do.

    Raises:
        InvalidRequest: See there.
    """
    check_generates(contract)
    limits = wanted.limits
    if contract.feedback is not None:
        without = {
            "sampling": wanted.options is not None,
            "stop_ids": bool(limits.stop_ids),
            "stop_texts": bool(limits.stop_texts),
            "min_tokens": limits.min_tokens > 0,
            "top_k": wanted.top_k > 0,
        }
        for field, is_given in without.items():
            if is_given:
                raise InvalidRequest(
                    f"{field} is given, and the model has no vocabulary: its output "
                    f"{contract.feedback.name!r} is its next input; leave {field} out",
                    field=field,
                )
        if not wanted.prompt:
            raise InvalidRequest(
                "there is no prompt, and nothing else says what follows in this model: send at least the "
                "next token as prompt",
                field="prompt",
            )
        return
    size = class_count(contract)
    _check_ids("stop_ids", limits.stop_ids, size)
    _check_ids("sampling.said_ids", wanted.said, size)
    _check_range("top_k", wanted.top_k, 0, size, "tokens of the vocabulary")
    if limits.min_tokens and len(limits.stop_ids) == size:
        raise InvalidRequest(
            "stop_ids has every id, so that no token could be drawn before min_tokens: leave some out",
            field="stop_ids",
        )
    if limits.stop_texts and not has_texts(contract):
        raise InvalidRequest(
            "stop_texts are given, and the model's vocabulary is of ids without texts: use stop_ids",
            field="stop_texts",
        )
    if not wanted.prompt and not can_probe(contract):
        raise InvalidRequest(
            f"there is no prompt, and the model tells what follows a token only when it comes: it gives no "
            f"token_log_prob over at most {MAX_PROBED} ids; send at least the next token as prompt",
            field="prompt",
        )


def class_count(contract: Contract) -> int:
    """Returns how many tokens the model weighs."""
    assert contract.ranked is not None, "bug: tokens are drawn from what the model does not have"
    return math.prod(contract.ranked.shape)


def has_texts(contract: Contract) -> bool:
    """Whether what is drawn stands for a text."""
    vocabulary = contract.vocabulary
    return bool(contract.texts) or (vocabulary is not None and vocabulary.kind == "bytes")


def can_probe(contract: Contract) -> bool:
    """Whether what follows a state can be found out without a token."""
    return bool(contract.texts) or (
        contract.token_log_prob is not None and class_count(contract) <= MAX_PROBED
    )


def unwritable(contract: Contract, limits: Limits) -> tuple[int, ...]:
    """Returns ids that are never drawn: subwords that no text has, unless they end the generation."""
    stops = set(limits.stop_ids)
    return tuple(number for number, text in enumerate(contract.texts) if not text and number not in stops)


def tokens_of(contract: Contract, number: int) -> tuple[Any, bytes, int]:
    """Returns the chunk that a drawn id stands for: kind of its tokens, the raw tokens, and how many."""
    if contract.texts:
        text = contract.texts[number]
        return "text", text, len(text)
    if has_texts(contract) and number < 256:
        return "text", bytes([number]), 1
    return "ids", np.array([number], "<i8").tobytes(), 1


def features_of(values: NDArray[Any]) -> bytes:
    """Returns the raw features of one token that an output is as input."""
    return values.reshape(-1).astype("<f4").tobytes()


def _check_range(field: str, value: int, least: int, most: int, unit: str = "") -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"{field} is {value}, expected {least}..{most} {unit}".rstrip(), field=field)


def _check_size(field: str, size: int, least: int, most: int, unit: str) -> None:
    if not least <= size <= most:
        raise InvalidRequest(f"{field} has {size} {unit}, expected {least}..{most}", field=field)


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"{field} has {count} entries, expected at most {most}", field=field)


def _check_ids(field: str, ids: tuple[int, ...], size: int) -> None:
    for place, number in enumerate(ids):
        if not 0 <= number < size:
            raise InvalidRequest(
                f"{field} has {number}, the vocabulary has ids 0..{size - 1}", field=f"{field}[{place}]"
            )
