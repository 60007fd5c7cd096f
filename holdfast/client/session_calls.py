"""What `AsyncClient` does about copies of sessions, and about many sessions at once."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Unpack

from numpy.typing import NDArray

from holdfast.client.calls import Calls
from holdfast.client.copies import fork_one, forked_batch, import_one
from holdfast.client.copy_requests import (
    ListOptions,
    Where,
    deletion_request,
    export_request,
    fork_request,
    list_request,
)
from holdfast.client.deleted_batch import DeletedBatch
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, SessionId, session_id_text, session_ids_text
from holdfast.client.session import AsyncSession
from holdfast.client.session_pages import SessionPages
from holdfast.client.steps import Steps
from holdfast.client.tokens import to_arrays
from holdfast.client.writer import Writer
from holdfast.v1 import holdfast_pb2 as pb


class SessionCalls:
    """The calls of `AsyncClient` about copies of sessions, and about many sessions at once."""

    _calls: Calls
    _steps: Steps
    _replay_tokens: int

    async def fork_session(
        self, session_id: SessionId, new_id: SessionId | NewId = NewId.FROM_SERVER, **where: Unpack[Where]
    ) -> AsyncSession:
        """Copies a session, as it was last committed, to another id.

        Args:
            session_id: Of the session, which stays as it is.
            new_id: Of the copy; if it is left out, one is made that nobody can guess.
            position: Tokens that the session must have consumed; None is any.
            incarnation: In which it must be; 0 is any.

        Returns:
            The copy, which goes on where the session stands. It has no kept replies, and no cursor.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            SessionExists: `new_id` is taken.
            SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap,
            HoldfastError:
                The session cannot be copied.
        """
        stub = self._calls.next_stub()
        return self._session(stub, await fork_one(self._calls, stub, session_id, new_id, where))

    async def fork_batch(
        self, session_id: SessionId, new_ids: Iterable[SessionId], **where: Unpack[Where]
    ) -> OpenedBatch:
        """Copies a session, as it was last committed, to many ids, in two round trips to the store.

        Args:
            session_id: Of the session, which stays as it is.
            new_ids: B distinct ids of the copies.
            position: Tokens that the session must have consumed; None is any.
            incarnation: In which it must be; 0 is any.

        Returns:
            Where the copies stand, for `step_batch`; rows fail one by one, see `OpenedBatch.errors`.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap,
            HoldfastError:
                The session cannot be copied.
        """
        request = fork_request(session_id, session_ids_text(new_ids), **where)
        return forked_batch(await self._calls.call("ForkSession", request))

    async def export_session(self, session_id: SessionId, **where: Unpack[Where]) -> bytes:
        """Returns a session, as it was last committed, as a blob for `import_session`.

        Args:
            session_id: Of the session, which stays as it is.
            position: Tokens that it must have consumed; None is any.
            incarnation: In which it must be; 0 is any.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap,
            HoldfastError:
                As named.
        """
        request = export_request(session_id, **where)
        exported: pb.ExportSessionResponse = await self._calls.call("ExportSession", request)
        return exported.blob

    def list_sessions(
        self, prefix: str = "", **options: Unpack[ListOptions]
    ) -> AsyncGenerator[pb.Session, None]:
        """Yields the caller's sessions, in no particular order, page by page as they are read.

        One that is there from the first page to the last is yielded, perhaps twice.

        Args:
            prefix: Only ids that begin with this.
            model: Only sessions that run on this model.
            version: Of the model; 0 is any.
            min_idle_s: Only sessions without a commit for so many seconds.
            page_size: Most sessions of a page, 1..1000; 0 leaves it to the server.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            ModelNotFound, HoldfastError: As named.
        """
        return pages_of(self, prefix, **options).sessions()

    async def delete_batch(
        self, session_ids: Iterable[SessionId], incarnations: Sequence[int] | None = None
    ) -> DeletedBatch:
        """Destroys many sessions in the store, their states included.

        Args:
            session_ids: B distinct ids.
            incarnations: Of each the one to delete, so that a session opened again since stays; None is
                any.

        Returns:
            Where they ended; rows fail one by one, see `DeletedBatch.errors`.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            HoldfastError: The batch as a whole was refused.
        """
        request = deletion_request(session_ids, incarnations)
        return DeletedBatch(request.session_ids, await self._calls.call("DeleteBatch", request))

    async def get_state(self, session_id: SessionId) -> dict[str, NDArray[Any]]:
        """Returns the stored state of a session by name, without a batch axis, and opens nothing.

        Raises:
            SessionNotFound, SessionDeleted, ModelMismatch, RecordCorrupt, HoldfastError: As named.
        """
        request = pb.GetSessionRequest(session_id=session_id_text(session_id), include_state=True)
        return to_arrays((await self._calls.call("GetSession", request)).state)

    async def import_session(
        self, blob: bytes, session_id: SessionId | NewId = NewId.FROM_SERVER
    ) -> AsyncSession:
        """Makes a session of an exported blob: on this server, another one, or after a disaster.

        Args:
            blob: What `export_session` gave.
            session_id: Of the session that is made; if it is left out, one is made that nobody can guess.

        Returns:
            The session, which goes on where the exported one stood, with its kept replies and its cursor.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            InvalidRequest: The blob is damaged, or of a newer format.
            ModelMismatch: The server does not have the very model file.
            SessionExists, StateNotFinite, HoldfastError: As named.
        """
        stub = self._calls.next_stub()
        return self._session(stub, await import_one(self._calls, stub, blob, session_id))

    def _session(self, stub: Any, opened: pb.OpenSessionResponse) -> AsyncSession:
        return AsyncSession(Writer(self._calls, self._steps, stub, opened, [], self._replay_tokens))


def pages_of(client: SessionCalls, prefix: str, **options: Unpack[ListOptions]) -> SessionPages:
    """Returns the pages of a list, also for the client without asyncio; arguments as of `list_sessions`."""
    return SessionPages(client._calls, list_request(prefix, **options))  # noqa: SLF001
