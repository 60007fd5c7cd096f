"""What a model's contract is in the Open Inference Protocol: its inputs, and the tokens in them. Pure.

Inputs and outputs have the names of the graph. The states are the server's, and are neither.

A request has the tokens of one sequence, in the order in which they are applied. Before the axes of a token
itself, a shape may have a batch axis of 1, an axis of tokens, or both, in either order; a reply's outputs
have the same axes before those of an output. So a graph over (batch, width) is called with [1, width], and
one over (batch, time) with [1, time], as in Triton; and either takes several tokens in a request.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest
from service.engine.asked import Asked, TokenKind
from service.model.contract import Contract, StateSpec
from service.rpc.oip.tensors import BYTES, DATATYPES, Given, field_of


class TokenInput(NamedTuple):
    """An input that takes tokens, or columns of them.

    Attributes:
        name: In the graph.
        datatype: In the graph.
        accepted: Datatypes that a request may send it as.
        shape: Of a token, without batch and tokens.
        start: First of its columns.
    """

    name: str
    datatype: str
    accepted: tuple[str, ...]
    shape: tuple[int, ...]
    start: int


class Tokens(NamedTuple):
    """The tokens of a request.

    Attributes:
        kind: What they are.
        data: Raw, as the engine takes them.
        token_count: How many.
        width: Features per token; 1 for text and ids.
        leading: The axes that the request has before those of a token.
    """

    kind: TokenKind
    data: bytes
    token_count: int
    width: int
    leading: tuple[int, ...]

    def asked(self, model_name: str, version: int, selection: Any) -> Asked:
        """Returns what the chunk asks."""
        return Asked(self.kind, self.token_count, self.width, model_name, version, selection)


def token_inputs(contract: Contract) -> tuple[TokenInput, ...]:
    """Returns the inputs that every request has to give."""
    if contract.input.kind == "token_id":
        is_text = contract.vocabulary is not None and contract.vocabulary.kind == "bytes"
        accepted = ("INT64", "INT32", *(("UINT8", BYTES) if is_text else ()))
        return (TokenInput(contract.input.name, "INT64", accepted, (), 0),)
    return tuple(
        TokenInput(
            part.name,
            DATATYPES[part.dtype.name],
            tuple(dict.fromkeys((DATATYPES[part.dtype.name], "FP32"))),
            part.shape,
            part.columns[0],
        )
        for part in contract.graph_inputs
    )


def session_inputs(contract: Contract) -> tuple[StateSpec, ...]:
    """Returns the inputs that a request gives where a sequence starts."""
    return tuple(spec for spec in contract.states if spec.kind == "session_input")


def read_tokens(given: Mapping[str, Given], contract: Contract, max_tokens: int) -> Tokens:
    """Returns the tokens of a request.

    Raises:
        InvalidRequest: An input is missing, or of the wrong datatype or shape; or the tokens are too many.
    """
    inputs = token_inputs(contract)
    for spec in inputs:
        if spec.name not in given:
            raise InvalidRequest(
                f"input {spec.name!r} is missing; the model takes {_listed(contract)}",
                field=field_of(spec.name),
            )
        if given[spec.name].datatype not in spec.accepted:
            raise InvalidRequest(
                f"input {spec.name!r} has datatype {given[spec.name].datatype}, expected "
                f"{' or '.join(spec.accepted)}",
                field=field_of(spec.name),
            )
    first = given[inputs[0].name]
    if first.datatype == BYTES:
        tokens = _text(first)
    else:
        leading = [_leading(given[spec.name], spec) for spec in inputs]
        if len(set(leading)) > 1:
            raise InvalidRequest(
                f"the inputs have {', '.join(str(list(axes)) for axes in leading)} before the axes of a "
                "token, expected the same for all",
                field="inputs",
            )
        tokens = _values(given, contract, leading[0])
    if not 1 <= tokens.token_count <= max_tokens:
        raise InvalidRequest(
            f"the request has {tokens.token_count} tokens, expected 1..{max_tokens}",
            field=field_of(first.name),
        )
    return tokens


def _text(given: Given) -> Tokens:
    if given.values.size != 1:
        raise InvalidRequest(
            f"input {given.name!r} has {given.values.size} elements of BYTES, expected one, whose bytes "
            "are the tokens",
            field=field_of(given.name),
        )
    text: bytes = given.values.reshape(-1)[0]
    leading = (1, len(text)) if len(given.shape) == 2 else (len(text),)
    return Tokens("text", text, len(text), 1, leading)


def _values(given: Mapping[str, Given], contract: Contract, leading: tuple[int, ...]) -> Tokens:
    count = math.prod(leading)
    if contract.input.kind == "token_id":
        ids = given[contract.input.name].values.astype("<i8")
        return Tokens("ids", ids.tobytes(), count, 1, leading)
    specs = sorted(token_inputs(contract), key=lambda spec: spec.start)
    parts = [given[spec.name].values.reshape(count, -1) for spec in specs]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the engine refuses
        features = np.concatenate(parts, axis=1, dtype="<f4", casting="unsafe")
    return Tokens("features", features.tobytes(), count, features.shape[1], leading)


def _leading(given: Given, spec: TokenInput) -> tuple[int, ...]:
    """Returns the axes of an input before those of a token."""
    split = len(given.shape) - len(spec.shape)
    leading = given.shape[: max(split, 0)]
    is_right = split >= 0 and given.shape[split:] == spec.shape and len(leading) <= 2
    if not is_right or (len(leading) == 2 and 1 not in leading):
        own = "".join(f", {extent}" for extent in spec.shape)
        raise InvalidRequest(
            f"input {spec.name!r} has shape {list(given.shape)}, expected [tokens{own}] or [1, tokens{own}]"
            ": a request is of one sequence",
            field=field_of(spec.name),
        )
    return leading


def read_session_inputs(
    given: Mapping[str, Given], contract: Contract, *, is_start: bool
) -> dict[str, NDArray[Any]]:
    """Returns what a request gives for its sequence as such, by the name of the state.

    Raises:
        InvalidRequest: One is missing where the sequence starts, is given later, or has another shape; or
            an input is none of the model's.
    """
    of_session = {spec.input: spec for spec in session_inputs(contract)}
    known = {spec.name for spec in token_inputs(contract)} | of_session.keys()
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"the model has no input {name!r}; it takes {_listed(contract)}", field=field_of(name)
            )
        if name in of_session and not is_start:
            raise InvalidRequest(
                f"input {name!r} stays as it was when the sequence started; send it only with "
                "sequence_start",
                field=field_of(name),
            )
    arrays = {}
    for name, spec in of_session.items():
        if name in given:
            arrays[spec.name] = _session_input(given[name], spec)
        elif is_start and spec.is_required:
            raise InvalidRequest(
                f"input {name!r} is missing; the model needs it with sequence_start", field=field_of(name)
            )
    return arrays


def _session_input(given: Given, spec: StateSpec) -> NDArray[Any]:
    if given.shape not in (spec.shape, (1, *spec.shape)) or given.datatype != DATATYPES[spec.dtype.name]:
        raise InvalidRequest(
            f"input {given.name!r} is {given.datatype} {list(given.shape)}, expected "
            f"{DATATYPES[spec.dtype.name]} {[1, *spec.shape]}",
            field=field_of(given.name),
        )
    return given.values.reshape(spec.shape)


def _listed(contract: Contract) -> str:
    parts = [f"{spec.name} ({spec.datatype})" for spec in token_inputs(contract)]
    parts += [f"{spec.input} (with sequence_start)" for spec in session_inputs(contract)]
    return ", ".join(parts)
