"""The HTTP side: /metrics, /livez, /readyz. In a thread of its own, so that a stuck loop can be seen."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str, bytes]
Page = Callable[[], Answer]

TIMEOUT_S = 5.0
"""For a client that says nothing, before its thread is taken away."""

TEXT = "text/plain; charset=utf-8"


class HttpServer:
    """Serves pages until `close`.

    Args:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        pages: Path -> function that gives status, content type and body; called in a thread.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        self._server = ThreadingHTTPServer((host, port), _handler_class(pages))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_class(pages: dict[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version = "holdfast"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            status, kind, body = page() if page else (404, TEXT, b"not found\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stays quiet: a line per scrape helps nobody."""

    return Handler
