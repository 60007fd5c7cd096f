"""Turns what comes over the wire into an error: `service/rpc/status.py` the other way round."""

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from holdfast.errors import (
    DeadlinePassed,
    HoldfastError,
    MessageTooLarge,
    PermissionDenied,
    ServerUnavailable,
    ServiceError,
    Unauthenticated,
)

_DETAILS_KEY = "grpc-status-details-bin"
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_BY_REASON = {kind.reason: kind for kind in ServiceError.__subclasses__()}

_BY_CODE: dict[str, type[HoldfastError]] = {
    "UNAVAILABLE": ServerUnavailable,
    "UNKNOWN": ServerUnavailable,
    "INTERNAL": ServerUnavailable,
    "CANCELLED": ServerUnavailable,
    "DEADLINE_EXCEEDED": DeadlinePassed,
    "RESOURCE_EXHAUSTED": MessageTooLarge,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
}
"""Of statuses that gRPC or a proxy makes, without details; a connection that breaks has many names."""


def from_rpc(error: grpc.RpcError) -> HoldfastError:
    """Turns the error of a call into the class of its reason."""
    call: Any = error
    return _from_parts(call.code().name, call.details(), call.trailing_metadata())


def from_status(status: status_pb2.Status) -> HoldfastError:
    """Turns a google.rpc.Status into the class of its reason, or HoldfastError of one that is not known."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            detail.Unpack(info)
    metadata = dict(info.metadata)
    position = metadata.get("expected_position")
    return _BY_REASON.get(info.reason, HoldfastError)(
        status.message,
        field=metadata.get("field", ""),
        expected_position=None if position is None else int(position),
        retry_after_s=retry_after_s,
        metadata=metadata,
        reason=info.reason,
        code=_CODE_NAMES.get(status.code, "UNKNOWN"),
    )


def _from_parts(name: str, details: str | None, trailers: Any) -> HoldfastError:
    for key, value in trailers or ():
        if key == _DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    kind = _BY_CODE.get(name, HoldfastError)
    code = "UNAVAILABLE" if kind is ServerUnavailable else name
    return kind(details or name, code=code, metadata={"grpc_code": name})
