"""Turns errors into what goes over the wire: a code, and google.rpc details."""

import math
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from holdfast.errors import Overloaded, ServiceError
from service.rpc.ending import end_within

DOMAIN = "holdfast"

REQUEST_ID = "x-request-id"
"""Metadata of a request, and trailing metadata of a call that failed."""

MAX_STATUS_WAIT_S = 30.0
"""So long a status waits for a client that reads nothing."""

MAX_MESSAGE_BYTES = 512
MAX_FIELD_BYTES = 128
"""Longer texts are cut: they quote what was sent, and all trailing metadata of a call, where they stand
several times and are encoded to more bytes, must stay below gRPC's 8 KiB."""


def code_of(error: ServiceError) -> grpc.StatusCode:
    """Returns gRPC's code of an error."""
    return grpc.StatusCode[error.code]


def to_status(error: ServiceError) -> status_pb2.Status:
    """Returns the google.rpc.Status of an error, with all its details."""
    message, field = message_of(error), _cut(error.field, MAX_FIELD_BYTES)
    details = [_error_info(error, field)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        nanos = round(error.retry_after_s * 1e9)
        delay = duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = code_of(error).value[0]
    return status_pb2.Status(code=code, message=message, details=details)


def to_trailers(error: ServiceError) -> tuple[tuple[str, bytes | str], ...]:
    """Returns the trailing metadata that carries the details of a call's status.

    On overload it tells gRPC's own retries, where a client has them, how long to wait. Elsewhere it does
    not: they are few, and would all be used up before a server that leaves has been replaced.
    """
    details = ("grpc-status-details-bin", to_status(error).SerializeToString())
    if not isinstance(error, Overloaded) or error.retry_after_s is None:
        return (details,)
    return (details, ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))


async def abort(context: Any, error: ServiceError, request_id: str = "") -> NoReturn:
    """Ends a call with an error, its details and its id in logs; raises what grpc.aio raises then."""
    trailers = to_trailers(error)
    if request_id:
        trailers = (*trailers, (REQUEST_ID, request_id))
    end_within(MAX_STATUS_WAIT_S)
    await context.abort(code_of(error), message_of(error), trailers)
    raise AssertionError("bug: an aborted call goes on")


def message_of(error: ServiceError) -> str:
    """Returns the message of an error as it is sent."""
    return _cut(error.message, MAX_MESSAGE_BYTES)


def _cut(text: str, limit: int) -> str:
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "..."


def _error_info(error: ServiceError, field: str) -> any_pb2.Any:
    metadata = dict(error.metadata)
    if error.field:
        metadata["field"] = field
    if error.expected_position is not None:
        metadata["expected_position"] = str(error.expected_position)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    return _packed(info)


def _packed(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
