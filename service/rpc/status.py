"""Turns errors into what goes over the wire: a code, and google.rpc details. One table, one place."""

import math

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from service.common import errors
from service.common.errors import ServiceError

DOMAIN = "holdfast"

MAX_MESSAGE_BYTES = 512
MAX_FIELD_BYTES = 128
"""Longer texts are cut: they quote what was sent, and all trailing metadata of a call, where they stand
several times and are encoded to more bytes, must stay below gRPC's 8 KiB."""

CODES: dict[type[ServiceError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StateNotFinite: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SessionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SessionLost: grpc.StatusCode.NOT_FOUND,
    errors.SessionExpired: grpc.StatusCode.NOT_FOUND,
    errors.SessionDeleted: grpc.StatusCode.NOT_FOUND,
    errors.SessionExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.PositionConflict: grpc.StatusCode.ABORTED,
    errors.HistoryConflict: grpc.StatusCode.ABORTED,
    errors.PositionGap: grpc.StatusCode.OUT_OF_RANGE,
    errors.StoreRegressed: grpc.StatusCode.DATA_LOSS,
    errors.RecordCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.ModelMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AckLevelUnsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AckLevelNotReached: grpc.StatusCode.UNAVAILABLE,
    errors.SessionQuarantined: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ReplyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.ModelFailed: grpc.StatusCode.INTERNAL,
    errors.InternalFailure: grpc.StatusCode.INTERNAL,
}


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
    code: int = CODES[type(error)].value[0]
    return status_pb2.Status(code=code, message=message, details=details)


def to_trailers(error: ServiceError) -> tuple[tuple[str, bytes | str], ...]:
    """Returns the trailing metadata that carries the details of a call's status.

    On overload it tells gRPC's own retries, where a client has them, how long to wait. Elsewhere it does
    not: they are few, and would all be used up before a server that leaves has been replaced.
    """
    details = ("grpc-status-details-bin", to_status(error).SerializeToString())
    if not isinstance(error, errors.Overloaded) or error.retry_after_s is None:
        return (details,)
    return (details, ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))


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
