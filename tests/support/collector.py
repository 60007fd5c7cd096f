"""A collector of traces on loopback: takes what OTLP over HTTP brings, and keeps its spans."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


class Collector:
    """Listens on a port of its own.

    Attributes:
        url: What an exporter is given.
        spans: All that came, messages of OTLP.
        resources: Attributes of those who sent them, by name.
    """

    def __init__(self):
        self.spans, self.resources = [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, request):
        for one in request.resource_spans:
            self.resources.append(attributes(one.resource))
            for scope in one.scope_spans:
                self.spans += scope.spans

    def named(self, method):
        """Returns the spans of an rpc."""
        return [span for span in self.spans if span.name.endswith(f"/{method}")]


def attributes(of):
    """Returns the attributes of a span, an event or a resource by name."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}
