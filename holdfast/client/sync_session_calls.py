"""What `Client` does about copies of sessions, and about many sessions at once."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Unpack

from numpy.typing import NDArray

from holdfast.client.copy_requests import ListOptions, Where
from holdfast.client.deleted_batch import DeletedBatch
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, SessionId
from holdfast.client.runner import Runner
from holdfast.client.session_calls import SessionCalls, pages_of
from holdfast.client.session_pages import SessionPages
from holdfast.client.sync_session import Session
from holdfast.v1 import holdfast_pb2 as pb


class SyncSessionCalls:
    """The calls of `SessionCalls` without asyncio."""

    _client: SessionCalls
    _runner: Runner

    def fork_session(
        self, session_id: SessionId, new_id: SessionId | NewId = NewId.FROM_SERVER, **where: Unpack[Where]
    ) -> Session:
        """Copies a session to another id; see `AsyncClient.fork_session`."""
        forked = self._client.fork_session(session_id, new_id, **where)
        return Session(self._runner, self._runner.run(forked))

    def fork_batch(
        self, session_id: SessionId, new_ids: Iterable[SessionId], **where: Unpack[Where]
    ) -> OpenedBatch:
        """Copies a session to many new ids; see `AsyncClient.fork_batch`."""
        return self._runner.run(self._client.fork_batch(session_id, new_ids, **where))

    def export_session(self, session_id: SessionId, **where: Unpack[Where]) -> bytes:
        """Returns a session as a blob; see `AsyncClient.export_session`."""
        return self._runner.run(self._client.export_session(session_id, **where))

    def import_session(self, blob: bytes, session_id: SessionId | NewId = NewId.FROM_SERVER) -> Session:
        """Makes a session of an exported blob; see `AsyncClient.import_session`."""
        imported = self._client.import_session(blob, session_id)
        return Session(self._runner, self._runner.run(imported))

    def list_sessions(
        self, prefix: str = "", **options: Unpack[ListOptions]
    ) -> Generator[pb.Session, None, None]:
        """Yields the caller's sessions; see `AsyncClient.list_sessions`."""
        return self._read(pages_of(self._client, prefix, **options))

    def delete_batch(
        self, session_ids: Iterable[SessionId], incarnations: Sequence[int] | None = None
    ) -> DeletedBatch:
        """Destroys many sessions in the store; see `AsyncClient.delete_batch`."""
        return self._runner.run(self._client.delete_batch(session_ids, incarnations))

    def get_state(self, session_id: SessionId) -> dict[str, NDArray[Any]]:
        """Returns the stored state of a session; see `AsyncClient.get_state`."""
        return self._runner.run(self._client.get_state(session_id))

    def _read(self, pages: SessionPages) -> Generator[pb.Session, None, None]:
        while (page := self._runner.run(pages.next())) is not None:
            yield from page
