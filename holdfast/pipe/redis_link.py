"""A connection to the Redis or Valkey that has a stream, which outlives its restarts."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from holdfast.pipe.failures import EndFailed

Found = TypeVar("Found")

PASSING = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError,
    exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.ClusterDownError,
    exceptions.TryAgainError, exceptions.OutOfMemoryError, OSError,
)  # fmt: skip
"""Errors after which the same command may succeed later."""

FINAL = (exceptions.AuthenticationError, exceptions.AuthorizationError, ssl.SSLError)
"""Those of them that only a person can mend."""

LONGEST_PAUSE_S = 2.0
_ANSWERS_WITHIN_S = 5.0


class StreamAddress:
    """Where a stream is: redis-stream://[USER:PASSWORD@]HOST[:PORT]/STREAM, or rediss-stream for TLS.

    Query parameters: `db`, the number of the database; `password_file`, a file with the password, so that
    no list of processes shows it; `tls_ca`, a file of certificate authorities to trust.

    Args:
        url: Of the stream.

    Attributes:
        stream: Name of the stream.
        shown: The address without a password.

    Raises:
        ValueError: It is something else.
        OSError: A file of its parameters cannot be read.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.stream = unquote(parts.path[1:])
        port = parts.port or 6379
        self.shown = f"{parts.scheme}://{parts.hostname}:{port}/{self.stream}"
        if not parts.hostname or not self.stream or "/" in parts.path[1:]:
            raise ValueError(f"{self.shown!r} is not a stream, expected {parts.scheme}://HOST:PORT/STREAM")
        unknown = query.keys() - {"db", "password_file", "tls_ca"}
        if unknown:
            raise ValueError(
                f"{self.shown}: no parameter {min(unknown)!r}, expected db, password_file, tls_ca"
            )
        database = query.get("db", "0")
        if not database.isdigit():
            raise ValueError(f"{self.shown}: db is {database!r}, expected a number")
        password = unquote(parts.password) if parts.password else None
        if "password_file" in query:
            password = Path(query["password_file"]).read_text("utf-8-sig").strip()
        tls: dict[str, Any] = {}
        if parts.scheme == "rediss-stream":
            tls = {"ssl": True, "ssl_ca_certs": query.get("tls_ca")}
            if "tls_ca" in query:
                _check_authorities(query["tls_ca"])
        self._options = {
            "host": parts.hostname,
            "port": port,
            "db": int(database),
            "username": unquote(parts.username) if parts.username else None,
            "password": password,
            **tls,
        }

    def tagged(self, name: str) -> str:
        """Returns a key beside the stream, in the slot of a cluster that has the stream."""
        tag = self.stream.partition("{")[2].partition("}")
        has_tag = bool(tag[0] and tag[1])
        return f"{self.stream}:{name}" if has_tag else f"{{{self.stream}}}:{name}"

    def connect(self) -> Redis:
        """Returns a client that sends nothing twice by itself: what is lost is asked for anew, by rules."""
        return Redis(
            **self._options,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_ANSWERS_WITHIN_S,
            socket_connect_timeout=_ANSWERS_WITHIN_S,
        )


def _check_authorities(path: str) -> None:
    """Makes sure that a file holds certificates; `ssl` does not name the file.

    Raises:
        OSError, ValueError: It cannot be read, or holds none.
    """
    text = Path(path).read_text("ascii", errors="replace")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{path}: it holds no certificates ({error})") from None


class Insistence:
    """Repeats what may be repeated until the store answers, and says once that it waits.

    Args:
        shown: Names the store for people.
        say: Prints a line.
    """

    def __init__(self, shown: str, say: Callable[[str], None]) -> None:
        self._shown = shown
        self._say = say

    async def __call__(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Returns what `ask` does, however long that takes.

        Raises:
            EndFailed: The store refuses for good.
        """
        pause_s = 0.0
        while True:
            try:
                found = await ask()
            except FINAL as error:
                raise EndFailed(f"{self._shown}: {error}") from error
            except PASSING as error:
                if not pause_s:
                    self._say(f"waiting for {self._shown}: {error or type(error).__name__}")
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s or 0.05)
                await asyncio.sleep(pause_s)
            except exceptions.RedisError as error:
                raise EndFailed(f"{self._shown}: {error}") from error
            else:
                if pause_s:
                    self._say(f"{self._shown}: it answers again")
                return found
