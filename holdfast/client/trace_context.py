"""The trace in which a call is made, as its metadata say it: where the program uses OpenTelemetry, only."""

import importlib
import sys

Metadata = tuple[tuple[str, str], ...]


def with_trace_context(metadata: Metadata) -> Metadata:
    """Returns the metadata of a call, and those that name the current span, if there is one."""
    if "opentelemetry.trace" not in sys.modules:
        return metadata
    carrier: dict[str, str] = {}
    importlib.import_module("opentelemetry.propagate").inject(carrier)
    return (*metadata, *carrier.items())
