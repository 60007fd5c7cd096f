"""The client without asyncio: the same calls, run by an event loop in a thread of its own.

So there is one implementation of positions, retries and resending, whichever way it is used.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Self, Unpack

from holdfast.client.aio import AsyncClient, ClientOptions
from holdfast.client.batch_reply import BatchReply
from holdfast.client.loop_thread import LoopThread
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, OpenBatchOptions, OpenOptions, SessionId, StepBatchOptions
from holdfast.client.rows import Rows
from holdfast.client.runner import Runner
from holdfast.client.standing import Positions
from holdfast.client.sync_session import Session
from holdfast.client.sync_session_calls import SyncSessionCalls
from holdfast.client.watching import WatchedChunk, WatchOptions, watched
from holdfast.v1 import holdfast_pb2 as pb


class Client(SyncSessionCalls):
    """Speaks to a Holdfast server. May be shared by threads.

    Args:
        address: HOST:PORT, or several; see `AsyncClient`.
        options: Keyword arguments of `AsyncClient`.
    """

    def __init__(self, address: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._client: AsyncClient = AsyncClient(address, **options)
        self._thread = LoopThread(self._client.close)
        self._runner = Runner(self._thread)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections, unless a child of the process that made them leaves the block."""
        if not self._thread.is_inherited:
            self.close()

    def close(self) -> None:
        """Closes the connections and lets go of gRPC; sessions live on in the store.

        May be called again, and by any thread. Calls under way, and later ones, end with ClientClosed.

        Raises:
            ClientForked: This is a child of the process that made the client.
        """
        self._runner.close(self._client.close)

    def open_session(
        self, session_id: SessionId | NewId = NewId.FROM_SERVER, **options: Unpack[OpenOptions]
    ) -> Session:
        """Opens a session, or resumes the one that exists; see `AsyncClient.open_session`."""
        opened = self._client.open_session(session_id, **options)
        return Session(self._runner, self._runner.run(opened))

    def open_batch(
        self, model: str, session_ids: Iterable[SessionId], **options: Unpack[OpenBatchOptions]
    ) -> OpenedBatch:
        """Opens many sessions, or resumes those that exist; see `AsyncClient.open_batch`."""
        return self._runner.run(self._client.open_batch(model, session_ids, **options))

    def step_batch(
        self,
        model: str,
        session_ids: Iterable[SessionId],
        tokens: Rows,
        positions: Positions | None = None,
        **options: Unpack[StepBatchOptions],
    ) -> BatchReply:
        """Applies the same number of tokens to each of many sessions; see `AsyncClient.step_batch`."""
        return self._runner.run(self._client.step_batch(model, session_ids, tokens, positions, **options))

    def get_session(self, session_id: SessionId) -> pb.Session:
        """Returns what is known of a session; see `AsyncClient.get_session`."""
        return self._runner.run(self._client.get_session(session_id))

    def delete_session(self, session_id: SessionId, *, incarnation: int = 0) -> int:
        """Destroys a session in the store; see `AsyncClient.delete_session`."""
        return self._runner.run(self._client.delete_session(session_id, incarnation=incarnation))

    def save_checkpoint(
        self, session_id: SessionId, name: str, *, position: int | None = None, incarnation: int = 0
    ) -> pb.Checkpoint:
        """Keeps a session under a name; see `AsyncClient.save_checkpoint`."""
        saved = self._client.save_checkpoint(session_id, name, position=position, incarnation=incarnation)
        return self._runner.run(saved)

    def checkpoints(self, session_id: SessionId) -> list[pb.Checkpoint]:
        """Returns the checkpoints of a session, the oldest first."""
        return self._runner.run(self._client.checkpoints(session_id))

    def delete_checkpoint(self, session_id: SessionId, name: str) -> None:
        """Deletes a checkpoint; see `AsyncClient.delete_checkpoint`."""
        self._runner.run(self._client.delete_checkpoint(session_id, name))

    def restore_checkpoint(self, session_id: SessionId, name: str, *, incarnation: int = 0) -> pb.Session:
        """Puts a session back to a checkpoint; see `AsyncClient.restore_checkpoint`."""
        return self._runner.run(self._client.restore_checkpoint(session_id, name, incarnation=incarnation))

    def release_session(self, session_id: SessionId, *, discard: bool = False) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held; see `AsyncClient.release_session`."""
        return self._runner.run(self._client.release_session(session_id, discard=discard))

    def watch_session(
        self, session_id: SessionId, **options: Unpack[WatchOptions]
    ) -> Generator[WatchedChunk, None, None]:
        """Yields what becomes of a session until it ends; see `AsyncClient.watch_session`."""
        return watched(self._runner, self._client.watch_session(session_id, **options))

    def list_models(self) -> list[pb.Model]:
        """Returns every model served."""
        return self._runner.run(self._client.list_models())

    def get_model(self, name: str, version: int = 0) -> pb.Model:
        """Returns one model; see `AsyncClient.get_model`."""
        return self._runner.run(self._client.get_model(name, version))

    def reload_models(self) -> pb.ReloadModelsResponse:
        """Has a server look for new model files now; see `AsyncClient.reload_models`."""
        return self._runner.run(self._client.reload_models())
