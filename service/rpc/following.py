"""What follows a position of a session: the token that was drawn there, or how it is found out. Pure."""

from typing import NamedTuple

import numpy as np

from holdfast.history_digest import digest_after
from holdfast.v1 import holdfast_pb2 as pb
from service.model.contract import Contract
from service.rpc.generation_request import tokens_of
from service.store.record import Record


class Following(NamedTuple):
    """What follows a position.

    Attributes:
        number: The id that was drawn; 0 without a vocabulary.
        log_prob: Under the model; NaN where that is not known any more.
        features: Without a vocabulary, the raw features.
        top_ids: The likeliest ids, best first, if requested.
        top_log_probs: Their log-probabilities.
    """

    number: int
    log_prob: float = 0.0
    features: bytes = b""
    top_ids: tuple[int, ...] = ()
    top_log_probs: tuple[float, ...] = ()


def digest_at(record: Record, position: int) -> int:
    """Returns the history digest at a position after which a reply is kept."""
    return next(reply.digest_before for reply in record.replies if reply.position > position)


def next_id(record: Record, position: int, digest: int, contract: Contract) -> int | None:
    """Returns which token a generation applied at a position, as digests tell; None if none is kept.

    Tokens are not kept, but few are so short that trying all of them takes a moment. The reply to a step
    does not say what was drawn after it.
    """
    for reply in record.replies:
        if reply.position - reply.token_count != position or digest not in (0, reply.digest_before):
            continue
        if not pb.Outputs.FromString(reply.outputs).sampled_ids:
            continue
        count = len(contract.texts) or (0 if contract.vocabulary is None else contract.vocabulary.size)
        for number in range(count):
            kind, raw, token_count = tokens_of(contract, number)
            tokens = raw if kind == "text" else np.frombuffer(raw, "<i8")
            is_as_long = token_count == reply.token_count
            if is_as_long and digest_after(reply.digest_before, tokens) == reply.digest:
                return number
    return None
