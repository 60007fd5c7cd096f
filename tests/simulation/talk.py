"""What the talking model of a simulation says, and what a generation gives if nothing ever breaks. Pure.

What follows a history is a function of its hash, and what is drawn from that one of seed, position and
options. So the tokens of a whole generation are known before it begins.
"""

from typing import NamedTuple

import numpy as np

from service.engine.sampling import Options
from tests.support import sampling_oracle
from tests.support.hash_oracle import hash_of, next_hash

TALK_IDS = 4096
"""Of the vocabulary."""

SAID_IDS = 16
"""The first of them, which the model says; it only hears the others."""


class Wanted(NamedTuple):
    """What a generation is asked for.

    Attributes:
        options: How tokens are drawn, each a number that float32 has.
        seed: See there.
        stop_ids: Drawing one ends it.
        min_tokens, max_tokens: How many it has.
    """

    options: Options
    seed: int
    stop_ids: tuple[int, ...]
    min_tokens: int
    max_tokens: int


def log_probs_of(hashes):
    """Returns what follows: float32 (..., TALK_IDS) for int64 (...)."""
    weights = np.exp(((hashes[..., np.newaxis] >> np.arange(SAID_IDS)) & 7) / 2)
    given = np.full((*hashes.shape, TALK_IDS), -np.inf, np.float32)
    given[..., :SAID_IDS] = np.log(weights / weights.sum(axis=-1, keepdims=True))
    return given


def uninterrupted(state, position, prompt, wanted):
    """Returns the ids of a generation that nothing interrupts.

    Args:
        state: The hash that it begins at, and `position` the number of tokens before.
        position: See there.
        prompt: Applied first.
        wanted: What is asked.
    """
    state, position = hash_of(prompt, state), position + len(prompt)
    said, given = {number for number in prompt if number < SAID_IDS}, []
    while len(given) < wanted.max_tokens:
        log_probs = log_probs_of(np.int64(state))[:SAID_IDS].tolist()
        excluded = wanted.stop_ids if len(given) < wanted.min_tokens else ()
        number, _ = sampling_oracle.draw(log_probs, wanted.options, wanted.seed, position, said, excluded)
        if number in wanted.stop_ids:
            break
        given.append(number)
        said.add(number)
        state, position = next_hash(state, number), position + 1
    return given
