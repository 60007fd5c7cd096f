"""Which sequence a request of the Open Inference Protocol is of, and what is asked of it. Pure.

A sequence is a session. Its id is MODEL/ID for the string ID, and MODEL#N for the integer N: as in Triton,
the same number is one sequence in each model, and 7 and "7" are two. No model's name has a slash, so no two
sequences share a session.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from holdfast.errors import InvalidRequest, ServiceError, SessionDeleted, SessionExpired, SessionNotFound
from service.rpc.codec import MAX_ID_CHARS, check_id

POSITION, INCARNATION, REPLAYED = "holdfast_position", "holdfast_incarnation", "holdfast_replayed"
_OWN = "holdfast_"

_BEGIN = "send sequence_start=true with its first request"


class Sequence(NamedTuple):
    """What a request says of its sequence.

    Attributes:
        model_name: Of the model.
        shown: The sequence and its model, for messages.
        session_id: Of its session.
        is_start: It begins with this request.
        is_end: It ends with it.
        position: Tokens before the request; None if it does not say.
        incarnation: The one that is meant; 0 is any.
        wait_s: The caller waits so long for the request to run.
    """

    model_name: str
    shown: str
    session_id: str
    is_start: bool
    is_end: bool
    position: int | None
    incarnation: int
    wait_s: float


def read_sequence(model_name: str, parameters: Mapping[str, Any]) -> Sequence:
    """Reads the parameters of a request; those that mean nothing here are left alone.

    Raises:
        InvalidRequest: One is missing or wrong.
    """
    if not model_name:
        raise InvalidRequest("model_name is empty", field="model_name")
    for name in parameters:
        if name.startswith(_OWN) and name not in (POSITION, INCARNATION):
            raise InvalidRequest(
                f"parameter {name!r} is unknown, expected {POSITION} or {INCARNATION}", field=_field(name)
            )
    given = _sequence_id(model_name, parameters)
    is_start = bool(_value(parameters, "sequence_start", "bool_param", False))
    position = _value(parameters, POSITION, "int64_param", None)
    incarnation = _value(parameters, INCARNATION, "int64_param", 0)
    if is_start and (position or incarnation):
        raise InvalidRequest(
            f"sequence_start begins a new incarnation at position 0, so {POSITION} may only be 0 and "
            f"{INCARNATION} may not be given",
            field=_field(POSITION if position else INCARNATION),
        )
    timeout_us = _value(parameters, "timeout", "int64_param", 0)
    return Sequence(
        model_name,
        f"sequence {given!r} of model {model_name!r}",
        _session_id(model_name, given),
        is_start,
        bool(_value(parameters, "sequence_end", "bool_param", False)),
        position,
        incarnation,
        timeout_us / 1e6 if timeout_us > 0 else math.inf,
    )


def explained(error: ServiceError, sequence: Sequence) -> ServiceError:
    """Returns an error of a session in the terms of its sequence."""
    message = error.message
    if isinstance(error, SessionNotFound):
        message = f"it was never started, or was ended or idle too long ago to be remembered; {_BEGIN}"
    elif isinstance(error, SessionDeleted) and not sequence.incarnation:
        message = f"it was ended; {_BEGIN}"
    elif isinstance(error, SessionExpired):
        message = f"it has expired, having been idle for too long; {_BEGIN}"
    told = type(error)(
        f"{sequence.shown}: {message}",
        field=error.field,
        expected_position=error.expected_position,
        retry_after_s=error.retry_after_s,
        metadata=error.metadata,
    )
    told.__cause__ = error.__cause__
    return told


def _sequence_id(model_name: str, parameters: Mapping[str, Any]) -> int | str:
    parameter = parameters.get("sequence_id")
    kind = None if parameter is None else parameter.WhichOneof("parameter_choice")
    if kind not in (None, "int64_param", "string_param"):
        raise InvalidRequest(
            f"sequence_id is given as {kind}, expected int64_param or string_param",
            field=_field("sequence_id"),
        )
    given: int | str = getattr(parameter, kind) if kind else 0
    if not given:
        raise InvalidRequest(
            f"model {model_name!r} keeps the state of sequences: the request needs a sequence_id other "
            'than 0 and ""',
            field=_field("sequence_id"),
        )
    return given


def _session_id(model_name: str, given: int | str) -> str:
    if isinstance(given, int):
        return check_id(f"{model_name}#{given}", _field("sequence_id"))
    most = MAX_ID_CHARS - len(model_name) - 1
    if len(given) > most:
        raise InvalidRequest(
            f"sequence_id has {len(given)} characters, expected at most {most} with model {model_name!r}",
            field=_field("sequence_id"),
        )
    return check_id(f"{model_name}/{given}", _field("sequence_id"))


def _value(parameters: Mapping[str, Any], name: str, kind: str, default: Any) -> Any:
    if name not in parameters:
        return default
    given = parameters[name].WhichOneof("parameter_choice")
    if given != kind:
        raise InvalidRequest(f"{name} is given as {given}, expected {kind}", field=_field(name))
    return getattr(parameters[name], kind)


def _field(name: str) -> str:
    return f"parameters[{name}]"
