"""What may be asked of a generation, and the tokens that it gives. Pure."""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from holdfast.client.ack_levels import to_name, to_number
from holdfast.client.options import real_number, whole_number
from holdfast.client.reply import StepReply
from holdfast.pending import Tokens
from holdfast.v1 import holdfast_pb2 as pb

MAX_TOKENS = 65_536
MAX_SEED = 2**63 - 1

Stop = int | str | bytes | Iterable[int | str | bytes]
"""What ends a generation: ids, which are not emitted, and texts, which are."""


class GenerateOptions(TypedDict, total=False):
    """What may be asked of a generation; see `AsyncSession.generate`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Stop
    min_tokens: int
    candidates: int
    ack_level: str | None


class GeneratedToken:
    """A token that was generated and is committed.

    Attributes:
        id: Its id; 0 of a model without vocabulary.
        text: What it stands for, which need not be whole characters; b"" where the server knows no texts.
        features: Its features, float32 (width,), of a model without vocabulary; else None.
        log_prob: Its log-probability under the model, before temperature and all filters; NaN where it
            followed a session without a prompt and was fetched again.
        top: The likeliest tokens in its place, (id, log-probability), best first, if requested.
        position: Tokens the session has consumed, this one included.
        history_digest: Of these; see `holdfast.history_digest`.
        replayed: It had been committed before it was asked for.
        ack_level: How durable its commit was: `memory`, `fsynced`, `replicated` or `fsynced+replicated`.
    """

    def __init__(self, token: pb.GeneratedToken, reply: StepReply) -> None:
        self.id: int = token.id
        self.text: bytes = token.text
        self.features: NDArray[np.float32] | None = None
        if token.HasField("features"):
            self.features = np.frombuffer(token.features.data, "<f4")
        self.log_prob: float = token.log_prob
        self.top: list[tuple[int, float]] = list(zip(token.top_ids, token.top_log_probs, strict=True))
        self.position: int = token.position
        self.history_digest: int = token.history_digest
        self.replayed: bool = token.replayed
        self.ack_level: str = to_name(token.ack_level)
        self._reply = reply

    def __repr__(self) -> str:
        return f"GeneratedToken(id={self.id}, text={self.text!r}, position={self.position})"


def reply_of(token: GeneratedToken) -> StepReply:
    """Returns the reply to the chunk that the token was."""
    return token._reply  # noqa: SLF001


def events_of(message: pb.GenerateResponse) -> list[pb.GenerateResponse]:
    """Returns the events of a message, in order; each without `more`, which the message loses."""
    if not message.more:
        return [message]
    events = [message, *message.more]
    message.ClearField("more")
    return events


def tokens_of(token: pb.GeneratedToken) -> Tokens:
    """Returns a generated token as it was applied: bytes, ids (1,) or features (1, width)."""
    if token.HasField("features"):
        return np.frombuffer(token.features.data, "<f4").reshape(1, -1)
    return token.text or np.array([token.id], np.int64)


def template(
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Stop = (),
    min_tokens: int = 0,
    candidates: int = 0,
    ack_level: str | None = None,
) -> pb.GenerateRequest:
    """Writes what all calls of a generation have in common.

    Raises:
        TypeError: Something is of another type than it should be.
        ValueError: A number does not fit into the request; the server holds it against its model.
    """
    request = pb.GenerateRequest(
        max_tokens=whole_number("max_tokens", max_tokens, at_least=1, at_most=MAX_TOKENS),
        min_tokens=whole_number("min_tokens", min_tokens, at_least=0),
        top_k=whole_number("candidates", candidates, at_least=0),
        ack_level=to_number(ack_level),
    )
    if isinstance(stop, int | str | bytes | np.integer):
        stop = [stop]
    elif not isinstance(stop, Iterable):
        raise TypeError(f"stop is {stop!r:.80}, expected ids and texts, or none: ()")
    for one in stop:
        if isinstance(one, str | bytes):
            request.stop_texts.append(one.encode() if isinstance(one, str) else one)
        else:
            request.stop_ids.append(whole_number("stop", one, at_least=0))
    sampling = pb.Sampling(
        repetition_penalty=real_number("repetition_penalty", repetition_penalty),
        temperature=real_number("temperature", temperature),
        top_k=whole_number("top_k", top_k, at_least=0),
        top_p=real_number("top_p", top_p),
        min_p=real_number("min_p", min_p),
        seed=whole_number("seed", seed, at_least=0, at_most=MAX_SEED),
    )
    if sampling != pb.Sampling(repetition_penalty=1, temperature=1, top_p=1):
        request.sampling.CopyFrom(sampling)
    return request
