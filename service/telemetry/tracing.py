"""Traces: a span for each call, sent to a collector by OpenTelemetry's own library.

A span has the stages of the engine as events, and is a child of the caller's span where the call has a W3C
`traceparent`. Like lines of the log, it has marks of sessions in it, and never ids, tokens or credentials.
What the library can be told by its environment variables (`OTEL_…`), such as which calls are sampled, is
left to them.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from holdfast.v1 import holdfast_pb2 as pb
from service.common.this_process import this_process
from service.engine.stages import Stages
from service.telemetry.logs import session_mark
from service.telemetry.rpc_metrics import CODES

CLOSE_S = 2.0
"""For the last spans to leave; a collector that is away must not hold up the end of a server."""

_SERVICE: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name
_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = frozenset(("traceparent", "tracestate"))
_FAILURES = frozenset(
    ("Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss")
)
"""Codes for which the server is at fault; of others the status of a server's span says nothing."""


class CallSpan:
    """The span of one call.

    Args:
        span: Of the library.

    Attributes:
        stages: What the engine did for the call's chunks.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._offset_s = time.time() - time.monotonic()
        self._began_s = time.monotonic()
        self.stages = Stages()

    def end(self, code: int, *, reason: str, tenant: str, session_id: str, row_count: int | None) -> None:
        """Ends it.

        Args:
            code: Number of the status.
            reason: Of the refusal; "" if there is none.
            tenant: Of the caller.
            session_id: Of the session that the call is about; "" if it is not one.
            row_count: Of the batch, if it has one.
        """
        if self.stages:
            self._add("queue", self._began_s, min(stage.began_s for stage in self.stages))
        for name, began_s, ended_s in self.stages:
            self._add(name, began_s, ended_s)
        attributes: dict[str, str | int] = {"rpc.grpc.status_code": code}
        if reason:
            attributes["holdfast.reason"] = reason
        if session_id:
            attributes["holdfast.session"] = session_mark(tenant, session_id)
        if row_count is not None:
            attributes["holdfast.rows"] = row_count
        self._span.set_attributes(attributes)
        if CODES[code] in _FAILURES:
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()

    def _add(self, name: str, began_s: float, ended_s: float) -> None:
        at_ns = int((self._offset_s + began_s) * 1e9)
        self._span.add_event(name, {"holdfast.duration_s": ended_s - began_s}, at_ns)


class Tracing:
    """Makes spans and sends them, in a thread of the library. Starts at once; `close` ends it.

    Args:
        url: Of the collector, for OTLP over HTTP, such as http://localhost:4318/v1/traces.
    """

    def __init__(self, url: str) -> None:
        attributes = {"service.version": version("holdfast"), "service.instance.id": this_process()}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = "holdfast"
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("holdfast", version("holdfast"))

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan | None:
        """Begins the span of a call; None where it is not sampled.

        Args:
            method: Name of the rpc.
            metadata: Of the call.
        """
        carrier = {key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)}
        context = _PROPAGATOR.extract(carrier, Context())
        span = self._tracer.start_span(
            f"{_SERVICE}/{method}",
            context,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method},
        )
        return CallSpan(span) if span.is_recording() else None

    async def close(self) -> None:
        """Sends what is left, unless that takes long, and ends its thread."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces end", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, CLOSE_S)
