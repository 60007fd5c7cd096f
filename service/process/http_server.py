"""The HTTP side: /metrics, /livez, /readyz, served by uvicorn.

In a thread of its own with a loop of its own, so that it can be seen that the other loop is stuck. The loop
is asyncio's, which pauses when there is no descriptor left to accept with; uvloop's turns on and on.
"""

import asyncio
import functools
import socket
import threading
from collections.abc import Mapping
from typing import Any

import uvicorn

from service.common.background import Trouble
from service.process.http_connection import (
    HEADER_BYTES,
    KEEP_ALIVE_S,
    REPLY_BYTES,
    BoundedConnection,
    Crowd,
)
from service.process.http_pages import Page, Pages

BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""

RECOVERED_AFTER_S = 5.0
"""Without trouble for so long, the next one is said again."""


class HttpServer:
    """Serves pages until `close`.

    Args:
        listener: Bound; it is closed at the end.
        pages: By path; called in the thread of this server.

    Raises:
        OSError: There is no descriptor for a loop.
    """

    def __init__(self, listener: socket.socket, pages: Mapping[str, Page]) -> None:
        for buffer, size_bytes in ((socket.SO_RCVBUF, HEADER_BYTES), (socket.SO_SNDBUF, REPLY_BYTES)):
            listener.setsockopt(socket.SOL_SOCKET, buffer, size_bytes)  # those accepted inherit it
        listener.listen(BACKLOG)
        self._listener = listener
        self._port: int = listener.getsockname()[1]
        self._trouble = Trouble("http")
        self._recovery: asyncio.TimerHandle | None = None
        self._server = uvicorn.Server(_config(pages))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port it listens on."""
        return self._port

    def close(self) -> None:
        """Stops listening; requests under way are answered, within a second."""
        self._server.should_exit = True
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            self._loop.set_exception_handler(self._note)
            runner.run(self._server.serve(sockets=[self._listener]))

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Notes what asyncio could not do, such as accept; it tries that again in a second."""
        self._trouble.note(context.get("exception") or RuntimeError(context["message"]))
        if self._recovery is not None:
            self._recovery.cancel()
        self._recovery = self._loop.call_later(RECOVERED_AFTER_S, self._trouble.worked)


def _config(pages: Mapping[str, Page]) -> uvicorn.Config:
    return uvicorn.Config(
        Pages(pages),
        http=functools.partial(BoundedConnection, Crowd()),  # type: ignore[arg-type]  # it makes them
        ws="none",
        lifespan="off",
        interface="asgi3",
        workers=1,  # else a variable of the environment is asked
        log_config=None,  # ours, where an error is all that it has to say
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
