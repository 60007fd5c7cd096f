"""What a client may have to handle: one class per reason of the service, below `HoldfastError`.

`HoldfastError.retryable` says whether the same call may succeed later. The library itself retries such
errors within the call's time limit, so one that reaches the caller has lasted that long. What became of the
tokens is in `pending` and `not_applied`, and at the end of the message.
"""

from typing import Any, ClassVar, Self

import grpc
from google.rpc import error_details_pb2, status_pb2

from holdfast.pending import PendingChunk

_DETAILS_KEY = "grpc-status-details-bin"
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class HoldfastError(Exception):
    """A call failed.

    Attributes:
        reason: UPPER_SNAKE name, stable.
        code: Name of the gRPC status code.
        expected_position: Position the store holds, where that matters; else None.
        retry_after_s: Pause the server asks for; None if it asks for none.
        metadata: Further facts from the server, by name.
        pending: Chunks of the session that may have been applied, or wait to be sent; until they are
            settled the session takes no others. Empty: it is known of every chunk what became of it.
        not_applied: Chunks that were taken from the caller and are known not to have been applied; the
            session has let them go, and its position is that of the first one.
    """

    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "UNKNOWN",
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.code = code
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        self.pending: tuple[PendingChunk, ...] = ()
        self.not_applied: tuple[PendingChunk, ...] = ()
        self._fate = ""
        position = self.metadata.get("expected_position")
        self.expected_position = int(position) if position is not None else None

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later; a step only with the `position` that it had."""
        return self.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") or self.retry_after_s is not None

    def tell(
        self,
        fate: str,
        *,
        pending: tuple[PendingChunk, ...] = (),
        not_applied: tuple[PendingChunk, ...] = (),
    ) -> Self:
        """Says what became of the tokens and what to do, at the end of the message; returns itself."""
        self._fate, self.pending, self.not_applied = fate, pending, not_applied
        return self

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self._fate}" if self._fate else message


class InvalidRequest(HoldfastError):
    """The request is wrong in itself."""

    default_reason = "INVALID_REQUEST"


class StateNotFinite(HoldfastError):
    """The step would leave NaN or infinity in the state; nothing was changed."""

    default_reason = "STATE_NOT_FINITE"


class ModelNotFound(HoldfastError):
    """No such model or version is served."""

    default_reason = "MODEL_NOT_FOUND"


class SessionNotFound(HoldfastError):
    """No session has this id."""

    default_reason = "SESSION_NOT_FOUND"


class SessionLost(HoldfastError):
    """A session that ran is gone from the store."""

    default_reason = "SESSION_LOST"


class SessionExpired(HoldfastError):
    """The session was idle for too long."""

    default_reason = "SESSION_EXPIRED"


class SessionDeleted(HoldfastError):
    """The session, or this incarnation of it, is over: deleted, opened again, or taken over by a writer.

    What this writer has not had answered may or may not have been applied before.
    """

    default_reason = "SESSION_DELETED"


class SessionExists(HoldfastError):
    """A new session was asked for, and the id is taken."""

    default_reason = "SESSION_EXISTS"


class PositionConflict(HoldfastError):
    """Another writer has applied other tokens here; `expected_position` is where the session stands."""

    default_reason = "POSITION_CONFLICT"


class HistoryConflict(HoldfastError):
    """The session stands at this position, but not after the tokens that this client has seen applied.

    The store has lost some of them, and another writer has gone on from there. Nothing was applied.
    """

    default_reason = "HISTORY_CONFLICT"


class PositionGap(HoldfastError):
    """Tokens before this position are missing."""

    default_reason = "POSITION_GAP"


class StoreRegressed(HoldfastError):
    """The store has lost steps older than what this client still has."""

    default_reason = "STORE_REGRESSED"


class RecordCorrupt(HoldfastError):
    """The stored record is damaged."""

    default_reason = "RECORD_CORRUPT"


class ModelMismatch(HoldfastError):
    """The session runs on another model."""

    default_reason = "MODEL_MISMATCH"


class AckLevelUnsupported(HoldfastError):
    """The store cannot give the acknowledgement level."""

    default_reason = "ACK_LEVEL_UNSUPPORTED"


class AckLevelNotReached(HoldfastError):
    """The chunk is applied but did not become as durable as was asked for within the time limit."""

    default_reason = "ACK_LEVEL_NOT_REACHED"


class SessionQuarantined(HoldfastError):
    """The session failed again and again and is held until an administrator releases it."""

    default_reason = "SESSION_QUARANTINED"


class Unauthenticated(HoldfastError):
    """The server does not know the token or certificate of this client."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(HoldfastError):
    """The client's credential does not allow this."""

    default_reason = "PERMISSION_DENIED"


class Overloaded(HoldfastError):
    """The server has too much waiting."""

    default_reason = "OVERLOADED"


class ReplyTooLarge(HoldfastError):
    """The reply could not be kept for a retry: send fewer tokens or ask for fewer outputs."""

    default_reason = "REPLY_TOO_LARGE"


class StoreFull(HoldfastError):
    """The store has no memory left."""

    default_reason = "STORE_FULL"


class StoreUnavailable(HoldfastError):
    """The server's store does not answer."""

    default_reason = "STORE_UNAVAILABLE"


class Draining(HoldfastError):
    """The server is leaving, or asks for a new connection."""

    default_reason = "DRAINING"

    @property
    def is_goodbye(self) -> bool:
        """Whether it ends a stream on which all that was read is answered: go on elsewhere, at once."""
        return "requests_read" in self.metadata


class DeadlinePassed(HoldfastError):
    """The time limit ran out."""

    default_reason = "DEADLINE_PASSED"

    @property
    def is_silence(self) -> bool:
        """Whether nothing was heard of the server in that time; else it is the server that says so."""
        return "grpc_code" in self.metadata


class ModelFailed(HoldfastError):
    """The model raised, took too long, or broke its contract; nothing was changed."""

    default_reason = "MODEL_FAILED"


class InternalFailure(HoldfastError):
    """A fault of the server."""

    default_reason = "INTERNAL"


class ServerUnavailable(HoldfastError):
    """No server answers at the address."""

    default_reason = "SERVER_UNAVAILABLE"

    @property
    def hides_status(self) -> bool:
        """Whether a stream ended while something was written to it: grpc.aio then drops what was said."""
        return self.metadata.get("grpc_code") == "INTERNAL"


class MessageTooLarge(HoldfastError):
    """The request is larger than the server takes."""

    default_reason = "MESSAGE_TOO_LARGE"


class ChunkPending(HoldfastError):
    """Chunks taken before have no reply yet, so nothing new is taken: `settle()`, or repeat the first one.

    Raised by the client; nothing was sent.
    """

    default_reason = "CHUNK_PENDING"


class SessionBusy(HoldfastError):
    """Another call, or a stream that is not read to its end, held the session for the whole time limit.

    Raised by the client; nothing was sent.
    """

    default_reason = "SESSION_BUSY"


class ClientClosed(HoldfastError):
    """The client was closed before or during the call, or the session object before it.

    Raised by the client. What `pending` names may have been applied; a new client that opens the session
    finds by its position whether it was, and may repeat it with that chunk's position.
    """

    default_reason = "CLIENT_CLOSED"


class ClientForked(HoldfastError):
    """The client cannot be used here: it, or gRPC itself, was in use when the process forked."""

    default_reason = "CLIENT_FORKED"


class WrongEventLoop(HoldfastError, RuntimeError):
    """The client belongs to another event loop or thread than the one that called it."""

    default_reason = "WRONG_EVENT_LOOP"


_BY_REASON = {kind.default_reason: kind for kind in HoldfastError.__subclasses__()}

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


async def from_call(call: Any) -> HoldfastError:
    """Turns the status of a call of grpc.aio that has ended into the class of its reason."""
    return _from_parts((await call.code()).name, await call.details(), await call.trailing_metadata())


def _from_parts(name: str, details: str | None, trailers: Any) -> HoldfastError:
    for key, value in trailers or ():
        if key == _DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    kind = _BY_CODE.get(name, HoldfastError)
    code = "UNAVAILABLE" if kind is ServerUnavailable else name
    return kind(details or name, code=code, metadata={"grpc_code": name})


def from_status(status: status_pb2.Status) -> HoldfastError:
    """Turns a google.rpc.Status into the class of its reason."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            detail.Unpack(info)
    return _BY_REASON.get(info.reason, HoldfastError)(
        status.message,
        reason=info.reason,
        code=_CODE_NAMES.get(status.code, "UNKNOWN"),
        metadata=dict(info.metadata),
        retry_after_s=retry_after_s,
    )
