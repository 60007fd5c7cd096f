"""The pages of the HTTP side as an ASGI application: which there are, which methods, and what is refused.

Every answer is complete in itself, and no request has a body.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

TEXT = b"text/plain; charset=utf-8"

METHODS = ("GET", "HEAD", "OPTIONS")
PAUSE_SHARE = 9.0
"""After a `Paced` page was made, so many times as long as that took nobody gets another one."""

_ALLOW = (b"allow", ", ".join(METHODS).encode())
_CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """What a page says."""

    status: int
    body: bytes
    content_type: bytes = TEXT


Page = Callable[[], Awaitable[Answer]]


class Pages:
    """An ASGI application.

    Args:
        pages: By path.
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages

    async def __call__(self, scope: Mapping[str, Any], _receive: Any, send: Any) -> None:
        """Answers one request."""
        status, headers, body = await self._answer(scope)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Mapping[str, Any]) -> tuple[int, Headers, bytes]:
        if _has_body(scope["headers"]):
            return 413, [(b"content-type", TEXT), _CLOSE], b"a request has no body here\n"
        page = self._pages.get(scope["path"])
        if page is None:
            return (
                404,
                [(b"content-type", TEXT)],
                f"not found; there are {', '.join(self._pages)}\n".encode(),
            )
        if scope["method"] == "OPTIONS":
            return 204, [_ALLOW], b""
        if scope["method"] not in METHODS:
            return 405, [(b"content-type", TEXT), _ALLOW], b"only GET, HEAD and OPTIONS\n"
        answer = await page()
        return answer.status, [(b"content-type", answer.content_type)], answer.body


class Paced:
    """A page that is costly to make: it is made at most a tenth of the time, however many ask for it.

    Whoever asks gets one that was begun afterwards; all who wait for their turn share it.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Answer]) -> None:
        self._make = make
        self._next: asyncio.Task[Answer] | None = None
        self._from_s = 0.0

    async def __call__(self) -> Answer:
        """Returns the next one."""
        if self._next is None:
            self._next = asyncio.create_task(self._make_in_turn())
        return await asyncio.shield(self._next)

    async def _make_in_turn(self) -> Answer:
        await asyncio.sleep(self._from_s - time.monotonic())
        self._next = None
        started_s = time.monotonic()
        try:
            return self._make()
        finally:
            ended_s = time.monotonic()
            self._from_s = ended_s + PAUSE_SHARE * (ended_s - started_s)


def _has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )
