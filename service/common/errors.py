"""What can go wrong with a request, one class per reason.

`ServiceError`
  InvalidRequest       the request itself is wrong
  StateNotFinite       the step would leave NaN or infinity in the state
  ModelNotFound        no such model or version is served
  SessionNotFound      nothing is stored under the id
  SessionLost          a record must have existed and is gone
  SessionExpired       the session was idle for longer than its time to live
  SessionDeleted        the session, or the incarnation the client means, is over
  SessionExists        a new session was asked for, and the id is taken
  PositionConflict     other tokens were applied at this position
  HistoryConflict      the tokens before this position are not those that the client means
  PositionGap          tokens before this position are missing
  StoreRegressed       the store has lost steps it had acknowledged
  RecordCorrupt        the stored record is damaged
  ModelMismatch        the session runs on another model
  AckLevelUnsupported  the store cannot give the acknowledgement level
  AckLevelNotReached   the commit is not yet as durable as was asked for
  SessionQuarantined   the session failed again and again and is held
  Unauthenticated      no valid credential came with the request
  PermissionDenied     the credential does not allow this
  Overloaded           a bound is reached; later is right
  ReplyTooLarge        the reply could not be kept for a retry
  StoreFull            the store has no memory left
  StoreUnavailable     the store does not answer
  Draining             this server is leaving
  DeadlinePassed       the caller's time is up
  ModelFailed          the model raised, stalled, or gave what its contract does not say
  InternalFailure      a fault of this server

Knows no gRPC: the edge maps classes to status codes. `StartError` and
`ConfigurationError` are about a server, not a request.
"""

from collections.abc import Mapping
from typing import ClassVar, Self


class ServiceError(Exception):
    """A refusal with a stable reason.

    Attributes:
        reason: UPPER_SNAKE name that clients match on.
        message: What was wrong, where, and what would be right.
        field: Path of the request field at fault, "" if none is.
        expected_position: Position the store holds, where that is what the client needs.
        retry_after_s: Seconds after which the same request may succeed; None: do not repeat it.
        metadata: Further facts for the client, by name.
    """

    reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        expected_position: int | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.expected_position = expected_position
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

    def without_trace(self) -> Self:
        """Returns itself without the frames that it was raised in, once nobody needs them any more.

        They hold the request, and whoever keeps the error: a cycle, which lasts until the collector comes.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class InvalidRequest(ServiceError):
    """The request is wrong in itself; it would be wrong at any time."""

    reason = "INVALID_REQUEST"


class StateNotFinite(ServiceError):
    """The step would leave NaN or infinity in the state; the old state stays."""

    reason = "STATE_NOT_FINITE"


class ModelNotFound(ServiceError):
    """No model of that name and version is served."""

    reason = "MODEL_NOT_FOUND"


class SessionNotFound(ServiceError):
    """Nothing is stored under the id, and nothing says that it should be."""

    reason = "SESSION_NOT_FOUND"


class SessionLost(ServiceError):
    """The client has seen steps of a session that the store does not know."""

    reason = "SESSION_LOST"


class SessionExpired(ServiceError):
    """The session was idle for longer than its time to live."""

    reason = "SESSION_EXPIRED"


class SessionDeleted(ServiceError):
    """The session, or the incarnation the client means, is over."""

    reason = "SESSION_DELETED"


class SessionExists(ServiceError):
    """A new session was asked for, and the id is taken."""

    reason = "SESSION_EXISTS"


class PositionConflict(ServiceError):
    """Other tokens were applied at this position; `expected_position` is where the session stands."""

    reason = "POSITION_CONFLICT"


class HistoryConflict(ServiceError):
    """Other tokens than the client means were applied before this position."""

    reason = "HISTORY_CONFLICT"


class PositionGap(ServiceError):
    """Tokens before this position are missing; `expected_position` is where the session stands."""

    reason = "POSITION_GAP"


class StoreRegressed(ServiceError):
    """The store has lost acknowledged steps; resend from `expected_position`."""

    reason = "STORE_REGRESSED"


class RecordCorrupt(ServiceError):
    """The stored record is damaged; it is left as found."""

    reason = "RECORD_CORRUPT"


class ModelMismatch(ServiceError):
    """The session runs on another model than the one asked for or served."""

    reason = "MODEL_MISMATCH"


class AckLevelUnsupported(ServiceError):
    """The store cannot give the acknowledgement level."""

    reason = "ACK_LEVEL_UNSUPPORTED"


class AckLevelNotReached(ServiceError):
    """It is applied but not yet as durable as was asked for; the same again is a replay."""

    reason = "ACK_LEVEL_NOT_REACHED"


class SessionQuarantined(ServiceError):
    """The session failed again and again; it is held with its state until an administrator releases it."""

    reason = "SESSION_QUARANTINED"


class Unauthenticated(ServiceError):
    """No valid credential came with the request."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The credential is valid and does not allow this."""

    reason = "PERMISSION_DENIED"


class Overloaded(ServiceError):
    """A bound on waiting work is reached."""

    reason = "OVERLOADED"


class ReplyTooLarge(ServiceError):
    """The reply could not be kept for a retry; ask for fewer outputs or send fewer tokens."""

    reason = "REPLY_TOO_LARGE"


class StoreFull(ServiceError):
    """The store has no memory left; sessions already stored are intact."""

    reason = "STORE_FULL"


class StoreUnavailable(ServiceError):
    """The store does not answer; a write under way may or may not have happened."""

    reason = "STORE_UNAVAILABLE"


class Draining(ServiceError):
    """This server is leaving; another one takes the same request."""

    reason = "DRAINING"


class DeadlinePassed(ServiceError):
    """The caller's time was up before the chunk ran; nothing was changed."""

    reason = "DEADLINE_PASSED"


class ModelFailed(ServiceError):
    """The model raised while it ran, or took too long, or broke its contract; nothing was changed."""

    reason = "MODEL_FAILED"


class InternalFailure(ServiceError):
    """A fault of this server; its log has the trace."""

    reason = "INTERNAL"


class StartError(Exception):
    """The server cannot start; the message is one line for its operator.

    If a setting is at fault, the message starts with its flag: so it can be told where the setting is from.
    """


class ConfigurationError(StartError):
    """The settings are wrong by themselves: the same start fails anywhere and at any time."""
