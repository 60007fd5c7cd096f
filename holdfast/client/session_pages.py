"""A list of sessions, read page by page."""

from collections.abc import AsyncGenerator

from holdfast.client.calls import Calls
from holdfast.errors import InvalidRequest
from holdfast.v1 import holdfast_pb2 as pb

MAX_BEGINNINGS = 8
"""A list begins again where the store was started anew or has moved keys; so often, at most."""


class SessionPages:
    """Reads the pages of a list.

    Args:
        calls: Of the client.
        request: For the first page.
    """

    def __init__(self, calls: Calls, request: pb.ListSessionsRequest) -> None:
        self._calls = calls
        self._request = request
        self._beginnings = 1
        self._is_over = False

    async def next(self) -> list[pb.Session] | None:
        """Returns the next page, which may be empty; None after the last.

        Raises:
            HoldfastError: As of `AsyncClient.list_sessions`.
        """
        while not self._is_over:
            try:
                page = await self._calls.call("ListSessions", self._request)
            except InvalidRequest as error:
                if error.field != "page_token" or self._beginnings == MAX_BEGINNINGS:
                    raise
                self._beginnings += 1
                self._request.page_token = ""
            else:
                self._request.page_token = page.next_page_token
                self._is_over = not page.next_page_token
                return list(page.sessions)
        return None

    async def sessions(self) -> AsyncGenerator[pb.Session, None]:
        """Yields the sessions of all pages."""
        while (page := await self.next()) is not None:
            for session in page:
                yield session
