"""One call at the edge: gRPC's side of it, the id that it has in logs, and what is logged of it.

A failure of this server is a warning in the log; what callers do wrong is theirs. At level debug every
call is logged. A line has the request's id, the method, the reason, and the mark of the session; never
contents of tokens, ids of sessions, or credentials. So the message of a model that failed is left out as
well: onnxruntime may quote values in it.
"""

import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from holdfast.errors import (
    AckLevelNotReached,
    InternalFailure,
    ModelFailed,
    RecordCorrupt,
    ServiceError,
    StoreFull,
    StoreRegressed,
    StoreUnavailable,
)
from service.telemetry.log_lines import fields
from service.telemetry.logs import session_mark
from service.telemetry.rpc_metrics import RpcMetrics

REQUEST_ID = "x-request-id"
"""Metadata of a request, and trailing metadata of a call that failed."""

_RIGHT_ID = re.compile(r"[\w.:/+=-]{1,64}", re.ASCII)
"""Another one is not taken: it goes into logs and headers."""

_OURS = (
    AckLevelNotReached,
    InternalFailure,
    ModelFailed,
    RecordCorrupt,
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
        metrics: Counts its rpc.

    Attributes:
        context, metrics: The same.
    """

    __slots__ = ("_began_s", "_id", "_method", "_row_count", "_session_id", "context", "metrics")

    def __init__(self, method: str, context: Any, metrics: RpcMetrics) -> None:
        self.context = context
        self.metrics = metrics
        self._method = method
        self._id = ""
        self._session_id = ""
        self._row_count: int | None = None
        self._began_s = time.monotonic() if is_logged() else 0.0

    @property
    def request_id(self) -> str:
        """The id that the caller gave, or one made up when it is first asked for."""
        if not self._id:
            given = (value for key, value in self.context.invocation_metadata() or () if key == REQUEST_ID)
            self._id = next(filter(_is_right, given), None) or secrets.token_hex(8)
        return self._id

    def is_about(self, request: Any) -> None:
        """Notes what a request names; the request itself need not be kept for it."""
        self._session_id = getattr(getattr(request, "chunk", request), "session_id", "")
        batch = getattr(request, "batch", None)
        if batch is not None:
            self._row_count = len(batch.session_ids)

    def failed(self, error: ServiceError, tenant: str = "", session_id: str = "", **more: Any) -> None:
        """Logs a failure of this server; one of the caller's it leaves out."""
        if not isinstance(error, _OURS):
            return
        session_id = session_id or self._session_id
        about = {"request_id": self.request_id, "method": self._method, "reason": error.reason, **more}
        if session_id:
            about["session"] = session_mark(tenant, session_id)
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

    def ended(self, outcome: str, tenant: str = "") -> None:
        """Logs the call, if calls are.

        Args:
            outcome: OK, CANCELLED or the reason of its refusal.
            tenant: Of the caller, where it is known.
        """
        if not (self._began_s and is_logged()):
            return
        took_ms = round((time.monotonic() - self._began_s) * 1000, 3)
        about = {
            "request_id": self.request_id,
            "method": self._method,
            "outcome": outcome,
            "took_ms": took_ms,
        }
        if self._session_id:
            about["session"] = session_mark(tenant, self._session_id)
        if self._row_count is not None:
            about["rows"] = self._row_count
        _log.debug("a call ended", extra=fields(**about))


def is_logged() -> bool:
    """Whether every call is logged."""
    return _log.isEnabledFor(logging.DEBUG)


def _is_right(value: str | bytes) -> bool:
    return isinstance(value, str) and _RIGHT_ID.fullmatch(value) is not None
