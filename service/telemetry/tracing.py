"""Traces: a span for each call, sent to a collector by OpenTelemetry's own library.

A span has the stages of the engine as events, and is a child of the caller's span where the call has a W3C
`traceparent`. Like lines of the log, it has marks of sessions in it, and never ids, tokens or credentials.
What the library can be told by its environment variables (`OTEL_…`), such as which calls are sampled, is
left to them.
"""

import asyncio
import os
import time
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import holdfast
from service.common.this_process import this_process
from service.engine.stages import Stages
from service.telemetry.logs import session_mark
from service.telemetry.rpc_metrics import CODES

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
        span = self._span
        if span.is_recording():
            self._add_stages(span)
            span.set_attribute("rpc.grpc.status_code", code)
            if reason:
                span.set_attribute("holdfast.reason", reason)
            if session_id:
                span.set_attribute("holdfast.session", session_mark(tenant, session_id))
            if row_count is not None:
                span.set_attribute("holdfast.rows", row_count)
            if CODES[code] in _FAILURES:
                span.set_status(Status(StatusCode.ERROR, reason))
        span.end()

    def _add_stages(self, span: Span) -> None:
        if self.stages:
            first_s = min(stage.began_s for stage in self.stages)
            self._add(span, "queue", self._began_s, first_s)
        for name, began_s, ended_s in self.stages:
            self._add(span, name, began_s, ended_s)

    def _add(self, span: Span, name: str, began_s: float, ended_s: float) -> None:
        at_ns = int((self._offset_s + began_s) * 1e9)
        span.add_event(name, {"holdfast.duration_s": ended_s - began_s}, at_ns)


class Tracing:
    """Makes spans and sends them, in a thread of the library. Starts at once; `close` ends it.

    Args:
        url: Of the collector, for OTLP over HTTP, such as http://localhost:4318/v1/traces.
    """

    def __init__(self, url: str) -> None:
        attributes = {"service.version": holdfast.__version__, "service.instance.id": this_process()}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = "holdfast"
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("holdfast", holdfast.__version__)

    def begin(self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
        """Begins the span of a call.

        Args:
            service: Full name of the service.
            method: Name of the rpc.
            metadata: Of the call.
        """
        carrier = {key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)}
        context = _PROPAGATOR.extract(carrier, Context())
        span = self._tracer.start_span(
            f"{service}/{method}",
            context,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return CallSpan(span)

    async def close(self) -> None:
        """Sends what is left, and ends its thread."""
        await asyncio.to_thread(self._provider.shutdown)
