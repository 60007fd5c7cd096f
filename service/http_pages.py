"""The pages of the HTTP side as an ASGI application: which there are, which methods, and what is refused.

Every answer is complete at once, and no request has a body.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

TEXT = b"text/plain; charset=utf-8"

METHODS = ("GET", "HEAD", "OPTIONS")
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


def _has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )
