"""Who may call now: the tokens file as it is, and the calls that last longer than what allowed them."""

import asyncio
import contextlib
import logging
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.errors import Unauthenticated
from service.common.operator_files import FileContent
from service.common.text_files import decoded
from service.common.watched_files import WatchedFiles
from service.rpc.credentials import ANYBODY, Caller, Credentials, CredentialsError

_log = logging.getLogger(__name__)

_SCHEME = "bearer "

_UNHELD = contextlib.nullcontext()


class Access:
    """Finds the caller of a call.

    Args:
        tokens_file: See `credentials`; None lets everybody do everything.
        asks_certificates: Clients present certificates, and those are verified.

    Attributes:
        is_open: Everybody may do everything.

    Raises:
        CredentialsError: The file cannot be used.
    """

    def __init__(self, tokens_file: Path | None, *, asks_certificates: bool) -> None:
        self.is_open = tokens_file is None
        self._path = tokens_file
        self._asks_certificates = asks_certificates
        self._credentials: Credentials | None = None
        self._held: set[_Hold] = set()
        if tokens_file is not None:
            self._files = WatchedFiles([tokens_file])
            self._credentials = self._read_changed()

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

    def holding(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """Returns what lets a call go on for as long as its caller's credential grants what it did.

        Where it is left, Unauthenticated says that the credential no longer does; what ran inside, in the
        task that entered it, was cancelled.

        Raises:
            Unauthenticated: It has not since the call was let in, however long its message took to come.
        """
        if self._credentials is None:
            return _UNHELD
        if caller not in self._credentials:
            raise _revoked()
        return _Hold(caller, self._held)

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
        revoked = [hold for hold in self._held if hold.caller not in credentials]
        for hold in revoked:
            hold.revoke()
        _log.info("--tokens-file %s was replaced; calls ended: %d", self._path, len(revoked))

    def _read_changed(self) -> Credentials | None:
        try:
            contents = self._files.read_changed()
            credentials = None if contents is None else self._judge(contents[0])
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CredentialsError(
                f"--tokens-file {self._path}: {reason}; name a TOML file that can be read"
            ) from None
        except CredentialsError as error:
            raise CredentialsError(f"--tokens-file {self._path}: {error}") from None
        return credentials

    def _judge(self, file: FileContent) -> Credentials:
        """Returns what a file grants; one that is refused is not judged again until it changes."""
        try:
            _check_mode(file.mode)
            credentials = Credentials(decoded(file.data))
            if credentials.names_certificates and not self._asks_certificates:
                raise CredentialsError("a [[certificate]] needs --tls-client-ca")
        except (UnicodeDecodeError, CredentialsError) as error:
            self._files.judge()
            raise CredentialsError(str(error)) from None
        self._files.judge()
        return credentials


class _Hold:
    """A call while it lasts, as the task that serves it.

    Args:
        caller: Whose it is.
        held: Has this while the call lasts.
    """

    __slots__ = ("_cancelling", "_held", "_is_revoked", "_task", "caller")

    def __init__(self, caller: Caller, held: "set[_Hold]") -> None:
        self.caller = caller
        self._held = held
        self._is_revoked = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "bug: a call is served by a task"
        self._task, self._cancelling = task, task.cancelling()
        self._held.add(self)

    def revoke(self) -> None:
        """Ends the call."""
        self._held.discard(self)
        self._is_revoked = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._held.discard(self)
        if not self._is_revoked:
            return
        is_alone = self._task.uncancel() <= self._cancelling  # else somebody else has cancelled it as well
        if is_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise _revoked() from None


def _revoked() -> Unauthenticated:
    return Unauthenticated("the credential of this call was revoked")


def _check_mode(mode: int) -> None:
    """Makes sure that not everybody can write credentials.

    That everybody can read them is let pass: they are hashes of tokens with 256 random bits, and Kubernetes
    mounts its secrets readable. So is that a group can write: who is in it is for the operator to say.
    """
    if mode & stat.S_IWOTH:
        raise CredentialsError("every user of this machine may write it: chmod o-w")
