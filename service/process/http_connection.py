"""One HTTP connection: uvicorn's, with what it has no bound for: time, connections in all, bytes at once.

Knows no pages. The callbacks below are those of `asyncio.Protocol`; what HTTP means is for uvicorn and h11.
"""

import asyncio
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from service.settings.descriptors import HTTP_COUNT

EXCHANGE_S = 5.0
"""For a whole request to come, from the connection or its first byte on, and for the reply to be taken."""

KEEP_ALIVE_S = 20
"""An idle connection is closed after so long; Prometheus asks every 5 s, and by default every minute."""

HEADER_BYTES = 16_384
"""The largest head of a request that comes in parts, and what the kernel keeps of a connection, which then
bounds one that comes at once."""

REPLY_BYTES = 65_536
"""What the kernel keeps of replies that nobody reads, megabytes otherwise. A scrape has 30 KiB."""


class Crowd:
    """The connections there are, by when each of them last got a reply, or came.

    One too many, and the first of them is closed: who connects and asks at once is answered, however many
    others hold connections and do not.
    """

    def __init__(self, most: int = HTTP_COUNT) -> None:
        self._most = most
        self._members: dict[BoundedConnection, None] = {}

    def enter(self, connection: "BoundedConnection") -> None:
        """Takes a connection in; may close another."""
        self._members[connection] = None
        if len(self._members) > self._most:
            oldest = next(iter(self._members))
            del self._members[oldest]
            oldest.transport.abort()

    def was_answered(self, connection: "BoundedConnection") -> None:
        """Moves a connection to the end."""
        if connection in self._members:
            del self._members[connection]
            self._members[connection] = None

    def leave(self, connection: "BoundedConnection") -> None:
        """Forgets a connection, if it is still known."""
        self._members.pop(connection, None)


class BoundedConnection(H11Protocol):
    """A connection in a crowd.

    Args:
        crowd: Where it belongs.
        config, server_state, app_state: As uvicorn gives them.
    """

    def __init__(
        self,
        crowd: Crowd,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._crowd = crowd
        self._limit: asyncio.TimerHandle | None = None
        self._has_ended_sending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins the time of the first request."""
        super().connection_made(transport)
        self._crowd.enter(self)
        self._begin_exchange()

    def data_received(self, data: bytes) -> None:
        """Begins the time of a request that follows another."""
        if self._limit is None:
            self._begin_exchange()
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answers a whole request of a client that will send no other, then closes."""
        self._has_ended_sending = True
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        """Ends the time of an exchange, or begins that of a request that came behind it."""
        self._crowd.was_answered(self)
        if self._has_ended_sending:
            self.transport.close()
        if self.transport.get_write_buffer_size() == 0 and not self.transport.is_closing():
            self._end_exchange()
            if self.conn.trailing_data[0]:
                self._begin_exchange()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves the crowd."""
        self._end_exchange()
        self._unset_keepalive_if_required()
        self._crowd.leave(self)
        super().connection_lost(exc)

    def _begin_exchange(self) -> None:
        self._end_exchange()
        self._limit = self.loop.call_later(EXCHANGE_S, self._end_of_time)

    def _end_exchange(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _end_of_time(self) -> None:
        self._limit = None
        is_answered = self.cycle is not None and self.cycle.response_complete
        is_idle = is_answered and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if not is_idle or self.transport.get_write_buffer_size() or self.transport.is_closing():
            self.transport.abort()
