"""One call at the edge: whose it is, what it holds, the id that it has in logs, and what is logged of it.

A failure of this server is a warning in the log; what callers do wrong is theirs. At level debug every
call is logged. A line has the request's id, the method, the reason, and the mark of the session; never
contents of tokens, ids of sessions, or credentials. So the message of a model that failed is left out as
well: onnxruntime may quote values in it.
"""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from holdfast.errors import (
    AckLevelNotReached,
    HistoryConflict,
    InternalFailure,
    ModelFailed,
    RecordCorrupt,
    ServiceError,
    SessionLost,
    StoreFull,
    StoreRegressed,
    StoreUnavailable,
)
from service.engine.admission import Share
from service.rpc.credentials import NOBODY
from service.rpc.ending import end_within
from service.rpc.status import REQUEST_ID
from service.telemetry.log_lines import fields
from service.telemetry.logs import session_mark

if TYPE_CHECKING:
    from service.telemetry.tracing import CallSpan

CALL_BYTES = 24 << 10
"""What a unary call takes by itself, about: in gRPC and its tasks here."""

SLOWEST_BYTES_S = 64 << 10
"""A reply that is read more slowly than this, over a stall, is given up."""

_RIGHT_ID = re.compile(r"[\w.:/+=-]{1,64}", re.ASCII)
"""Another one is not taken: it goes into logs and headers."""

_OURS = (
    AckLevelNotReached,
    HistoryConflict,
    InternalFailure,
    ModelFailed,
    RecordCorrupt,
    SessionLost,
    StoreFull,
    StoreRegressed,
    StoreUnavailable,
)
"""What callers can do nothing about."""

_log = logging.getLogger(__name__)


class Call:
    """A call while it lasts.

    Args:
        method: Name of the rpc.
        context: The call, of grpc.aio.

    Attributes:
        context: The same.
        caller: Whose it is; NOBODY until that is known.
        share: What it holds; set by `OpenCalls`.
        began_s: Monotonic time.
        deadline_s: Monotonic time after which its caller no longer waits.
        ends_s: Monotonic time at which it is ended while it is served; infinity where its caller sets a
            deadline, at which gRPC ends it.
        is_arriving: Its message is awaited.
        task: What serves it; set once its message is awaited.
        refusal: With what it was ended.
        reason: Of the error with which it ended; "" while there is none.
        session_id: Of the session that it is about, where it is one.
        row_count: Of the batch that it has, if it has one.
        span: Its span, if it is traced.
    """

    __slots__ = (
        "_id",
        "_method",
        "began_s",
        "caller",
        "context",
        "deadline_s",
        "ends_s",
        "is_arriving",
        "reason",
        "refusal",
        "row_count",
        "session_id",
        "share",
        "span",
        "task",
    )

    share: Share
    task: "asyncio.Task[Any]"

    def __init__(self, method: str, context: Any) -> None:
        self.context = context
        self.caller = NOBODY
        self.began_s = time.monotonic()
        self.deadline_s = self.ends_s = math.inf
        self.is_arriving = False
        self.refusal: ServiceError | None = None
        self.reason = self.session_id = ""
        self.row_count: int | None = None
        self.span: CallSpan | None = None
        self._method = method
        self._id = ""

    @property
    def request_id(self) -> str:
        """The id that the caller gave, or one made up when it is first asked for."""
        if not self._id:
            given = (value for key, value in self.context.invocation_metadata() or () if key == REQUEST_ID)
            self._id = next(filter(_is_right, given), None) or secrets.token_hex(8)
        return self._id

    def refuse(self, error: ServiceError) -> None:
        """Ends it with an error, while its message is awaited or it is served."""
        if self.refusal is None:
            self.refusal = error
            self.is_arriving = False
            self.task.cancel()

    def cancelled_by(self) -> ServiceError | None:
        """Returns for what `refuse` has cancelled its task; None where somebody else has, or both have."""
        return None if self.refusal is None or self.task.uncancel() else self.refusal

    def replies(self, size_bytes: int, max_stall_s: float) -> None:
        """Counts the reply of a unary call that is about to be written; what it was made from is gone.

        Args:
            size_bytes: Of the reply.
            max_stall_s: It may take so long, and what its size adds.
        """
        self.share.hold(1, CALL_BYTES + 2 * size_bytes)  # it is here, and copied into gRPC
        end_within(max_stall_s + size_bytes / SLOWEST_BYTES_S, self.task)

    def failed(self, error: ServiceError, session_id: str = "", **more: Any) -> None:
        """Logs a failure of this server; one of the caller's it leaves out."""
        if not isinstance(error, _OURS):
            return
        session_id = session_id or self.session_id
        about = {"request_id": self.request_id, "method": self._method, "reason": error.reason, **more}
        if session_id:
            about["session"] = session_mark(self.caller.tenant, session_id)
        if not isinstance(error, ModelFailed):
            about["detail"] = error.message
        trace = error.__cause__ if isinstance(error, InternalFailure) else None
        _log.warning("a call failed", extra=fields(**about), exc_info=trace)

    def rows_failed(self, errors: Iterable[ServiceError]) -> None:
        """Logs the failures of rows of one message, those with one reason in one line."""
        by_reason: dict[str, list[ServiceError]] = {}
        for error in errors:
            by_reason.setdefault(error.reason, []).append(error)
        for alike in by_reason.values():
            self.failed(alike[0], rows=len(alike))

    def ended(self, outcome: str) -> None:
        """Logs the call, if calls are.

        Args:
            outcome: OK, CANCELLED or the reason of its refusal.
        """
        if not _log.isEnabledFor(logging.DEBUG):
            return
        took_ms = round((time.monotonic() - self.began_s) * 1000, 3)
        about = {
            "request_id": self.request_id,
            "method": self._method,
            "outcome": outcome,
            "took_ms": took_ms,
        }
        if self.session_id:
            about["session"] = session_mark(self.caller.tenant, self.session_id)
        if self.row_count is not None:
            about["rows"] = self.row_count
        _log.debug("a call ended", extra=fields(**about))


def _is_right(value: str | bytes) -> bool:
    return isinstance(value, str) and _RIGHT_ID.fullmatch(value) is not None
