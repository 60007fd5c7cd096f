"""Guesses what tensors may be that a contract does not mention, to be looked over by people. Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.model.axis_roles import named_role
from service.model.contract import GraphTensor
from service.model.contract_text import Place
from service.model.name_stems import words_of

_TOKEN_WORDS = frozenset(
    (
        "input",
        "inputs",
        "x",
        "u",
        "audio",
        "token",
        "tokens",
        "ids",
        "features",
        "feats",
        "frame",
        "samples",
    )
)
_SAMPLE_RATES = frozenset(("sr", "sample_rate", "samplerate", "sampling_rate", "fs"))
_USUAL_SAMPLE_RATE = 16000
_MOST_GUESSED = 64
"""Inputs for which outputs are looked through."""


@dataclass
class Guesses:
    """What may be true, in tables of a contract.

    Attributes:
        tokens: Inputs that may take tokens.
        states: Pairs that may be states.
        session_inputs: What may be given once.
        constants: What may be constant.
        notes: The questions.
    """

    tokens: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    session_inputs: list[dict[str, Any]] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    notes: dict[Place, str] = field(default_factory=dict)


def guess_rest(
    inputs: Mapping[str, GraphTensor],
    outputs: Mapping[str, GraphTensor],
    fits: Callable[[str, str], bool],
    *,
    has_tokens: bool,
    has_states: bool,
) -> Guesses:
    """Guesses what the rest of a graph's tensors may be.

    Args:
        inputs: Inputs of which nothing is known.
        outputs: Outputs of which nothing is known.
        fits: Says whether an output can follow an input, by its type and shape.
        has_tokens: The token is known.
        has_states: Some states are known, by names that pair: a name that does not is none of them.
    """
    guesses = Guesses()
    left = dict(inputs)
    if not has_tokens and left:
        token = _likely_token(left, outputs, fits)
        guesses.tokens.append({"name": token})
        if len(left) > 1:
            guesses.notes["input", token, "name"] = "? is this the token"
        del left[token]
    free = [] if has_states else list(outputs)
    followers: dict[str, str] = {}
    for number, (name, tensor) in reversed(list(enumerate(left.items()))):
        may_follow = free if tensor.shape and number < _MOST_GUESSED else []
        fitting = [other for other in reversed(may_follow) if fits(name, other)]
        follower = min(fitting, key=lambda other: outputs[other].shape != tensor.shape, default=None)
        if follower is not None:  # counted from the end: what a reply has mostly comes before the states
            free.remove(follower)
            followers[name] = follower
    for name, tensor in left.items():
        if name in followers:
            guesses.states.append({"input": name, "output": followers[name]})
            guesses.notes["state", name, "output"] = (
                "? its name does not say so; swapped states are not seen"
            )
        elif _has_rows(tensor):
            guesses.session_inputs.append({"name": name})
            guesses.notes["session_input", name, "name"] = (
                "? given when a session is opened; or a part of the token: [[input]]; or a constant"
            )
        else:
            guesses.constants[name] = _likely_value(name, tensor)
            guesses.notes["constants", name, ""] = f"? {tensor.dtype}: its value"
    for other in free:
        if any(fits(name, other) for name in list(followers)[:_MOST_GUESSED]):
            guesses.notes["output", other, "name"] = "? what a reply has; or what follows a state"
    return guesses


def _likely_token(
    left: Mapping[str, GraphTensor],
    outputs: Mapping[str, GraphTensor],
    fits: Callable[[str, str], bool],
) -> str:
    def rank(name: str) -> tuple[bool, bool, bool]:
        is_single = not left[name].shape
        is_worded = bool(_TOKEN_WORDS.intersection(words_of(name)))
        return is_single, not is_worded, any(fits(name, other) for other in outputs)

    return min(list(left)[:_MOST_GUESSED], key=rank)


def _has_rows(tensor: GraphTensor) -> bool:
    if tensor.shape == (1,):  # a single value
        return False
    return any(extent == 1 or not isinstance(extent, int) for extent in tensor.shape[:1]) or any(
        isinstance(extent, str) and named_role(extent) == "batch" for extent in tensor.shape
    )


def _likely_value(name: str, tensor: GraphTensor) -> Any:
    if name.lower() in _SAMPLE_RATES:
        return _USUAL_SAMPLE_RATE
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] + ".npy" if tensor.shape not in ((), (1,)) else "?"
