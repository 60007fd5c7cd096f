"""Who may call now: the tokens file as it is, and the calls that last longer than what allowed them."""

import asyncio
import contextlib
import logging
import stat
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from service.errors import Unauthenticated
from service.rpc.credentials import ANYBODY, Caller, Credentials, CredentialsError
from service.watched_files import WatchedFiles

_log = logging.getLogger(__name__)

_SCHEME = "bearer "


class Access:
    """Finds the caller of a call.

    Args:
        tokens_file: See `credentials`; None lets everybody do everything.
        asks_certificates: Clients present certificates, and those are verified.

    Raises:
        CredentialsError: The file cannot be used.
    """

    def __init__(self, tokens_file: Path | None, *, asks_certificates: bool) -> None:
        self._path = tokens_file
        self._asks_certificates = asks_certificates
        self._credentials: Credentials | None = None
        self._open_calls: dict[asyncio.Timeout, Caller] = {}
        if tokens_file is not None:
            self._files = WatchedFiles([tokens_file])
            self._credentials = self._read_changed()

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything."""
        return self._credentials is None

    def of_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
        """Returns who calls with this metadata; None leaves it to the connection's certificate.

        Raises:
            Unauthenticated: There is no token, or nobody's.
        """
        credentials = self._credentials
        if credentials is None:
            return ANYBODY
        given = [value for key, value in metadata if key == "authorization"]
        if not given and credentials.names_certificates:
            return None
        if len(given) == 1 and isinstance(given[0], str) and given[0][: len(_SCHEME)].lower() == _SCHEME:
            caller = credentials.of_token(given[0][len(_SCHEME) :].strip())
            if caller is not None:
                return caller
        raise Unauthenticated("no valid token came with the call, as 'authorization: Bearer …'")

    def of_connection(self, context: Any) -> Caller:
        """Returns who calls over the connection of a call, of grpc.aio.

        Raises:
            Unauthenticated: The client's certificate is nobody's.
        """
        facts = context.auth_context()
        sans, common_names = (
            [name.decode(errors="replace") for name in facts.get(key, ())]
            for key in ("x509_subject_alternative_name", "x509_common_name")
        )
        caller = self._credentials.of_certificate(sans, common_names) if self._credentials else ANYBODY
        if caller is None:
            raise Unauthenticated("no token came with the call, and the client's certificate is nobody's")
        return caller

    @contextlib.asynccontextmanager
    async def holding(self, caller: Caller) -> AsyncIterator[None]:
        """Holds a long call open for as long as the caller's credential grants what it did.

        Raises:
            Unauthenticated: It no longer does; what ran inside was cancelled.
        """
        if self._credentials is not None and caller not in self._credentials:
            raise _revoked()  # since the call was let in
        limit = asyncio.timeout(None)
        self._open_calls[limit] = caller
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _revoked() from None
        finally:
            self._open_calls.pop(limit, None)

    async def refresh(self) -> None:
        """Looks at the file again. A broken one is told once, and the one before stays in use."""
        if self._path is None:
            return
        try:
            credentials = await asyncio.to_thread(self._read_changed)
        except CredentialsError as error:
            _log.error("%s; the credentials before stay valid", error)
            return
        if credentials is None:
            return
        self._credentials = credentials
        revoked = [limit for limit, caller in self._open_calls.items() if caller not in credentials]
        for limit in revoked:
            del self._open_calls[limit]
            limit.reschedule(0.0)
        _log.info("--tokens-file %s was replaced; calls ended: %d", self._path, len(revoked))

    def _read_changed(self) -> Credentials | None:
        assert self._path is not None, "bug: no file to read"
        try:
            contents = self._files.read_changed()
            if contents is None:
                return None
            _check_mode(self._path)
            credentials = Credentials(contents[0].decode())
            if credentials.names_certificates and not self._asks_certificates:
                raise CredentialsError("a [[certificate]] needs --tls-client-ca")
            return credentials
        except (OSError, UnicodeDecodeError, CredentialsError) as error:
            raise CredentialsError(f"--tokens-file {self._path}: {error}") from None
        except Exception:
            self._files.forget()  # no memory, say: the file is not at fault and is looked at again
            raise


def _revoked() -> Unauthenticated:
    return Unauthenticated("the credential of this call was revoked")


def _check_mode(path: Path) -> None:
    """Makes sure that not everybody can write credentials.

    That everybody can read them is let pass: they are hashes of tokens with 256 random bits, and Kubernetes
    mounts its secrets readable.
    """
    if path.stat().st_mode & stat.S_IWOTH:
        raise CredentialsError("every user of this machine may write it: chmod o-w")
