"""The client without asyncio: the same calls, run by an event loop in a thread of its own.

So there is one implementation of positions, retries and resending, whichever way it is used.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

from numpy.typing import NDArray

from holdfast.aio import AsyncClient
from holdfast.columns import BatchReply, Rows
from holdfast.loop_thread import LoopThread
from holdfast.reply import StepReply
from holdfast.session import AsyncSession, Pieces
from holdfast.tokens import TokenSource
from holdfast.v1 import holdfast_pb2 as pb


class Client:
    """Speaks to a Holdfast server. May be shared by threads.

    Args:
        address: HOST:PORT, or several; see `AsyncClient`.
        options: Keyword arguments of `AsyncClient`.
    """

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._client = AsyncClient(address, **options)
        self._thread = LoopThread(self._client.close)

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
        self._thread.close()

    def session(
        self,
        session_id: str = "",
        *,
        model: str = "",
        version: int = 0,
        must_be_new: bool = False,
        take_over: bool = False,
        initial_state: dict[str, NDArray[Any]] | None = None,
    ) -> "Session":
        """Opens a session, or resumes the one that exists; see `AsyncClient.session`."""
        opened = self._client.session(
            session_id,
            model=model,
            version=version,
            must_be_new=must_be_new,
            take_over=take_over,
            initial_state=initial_state,
        )
        return Session(self._thread, self._thread.run(opened))

    def step_batch(
        self,
        model: str,
        session_ids: Sequence[str],
        tokens: Rows,
        positions: Sequence[int] | None = None,
        **options: Any,
    ) -> BatchReply:
        """Applies the same number of tokens to each of many sessions; see `AsyncClient.step_batch`."""
        return self._thread.run(self._client.step_batch(model, session_ids, tokens, positions, **options))

    def get_session(self, session_id: str) -> pb.Session:
        """Returns what is known of a session; see `AsyncClient.get_session`."""
        return self._thread.run(self._client.get_session(session_id))

    def release_session(self, session_id: str, *, discard: bool = False) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held; see `AsyncClient.release_session`."""
        return self._thread.run(self._client.release_session(session_id, discard=discard))

    def models(self) -> list[pb.Model]:
        """Returns every model served."""
        return self._thread.run(self._client.models())

    def model(self, name: str, version: int = 0) -> pb.Model:
        """Returns one model; see `AsyncClient.model`."""
        return self._thread.run(self._client.model(name, version))

    def reload_models(self) -> pb.ReloadModelsResponse:
        """Has a server look for new model files now; see `AsyncClient.reload_models`."""
        return self._thread.run(self._client.reload_models())


class Session:
    """One writer's session; see `AsyncSession`. Made by `Client.session`."""

    def __init__(self, thread: LoopThread, session: AsyncSession) -> None:
        self._thread = thread
        self._session = session
        self.session_id = session.session_id
        self.model = session.model
        self.model_version = session.model_version
        self.resumed = session.resumed

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: the session outlives its user."""

    @property
    def position(self) -> int:
        """Tokens applied and answered."""
        return self._session.position

    @property
    def incarnation(self) -> int:
        """Number of this life of the session."""
        return self._session.incarnation

    def step(self, tokens: TokenSource, **options: Any) -> StepReply:
        """Applies one chunk and returns its reply; see `AsyncSession.step`."""
        return self._thread.run(self._session.step(tokens, **options))

    def stream(self, tokens: Pieces, **options: Any) -> Iterator[StepReply]:
        """Applies many chunks and yields their replies in order; see `AsyncSession.stream`."""
        replies = self._session.stream(tokens, **options)
        try:
            while (reply := self._thread.run(_next(replies))) is not None:
                yield reply
        finally:
            self._thread.clean_up(_close(replies))

    def state(self) -> dict[str, NDArray[Any]]:
        """Returns the stored state by name, without a batch axis."""
        return self._thread.run(self._session.state())

    def close(self) -> None:
        """Ends the session in the store and forgets its state."""
        self._thread.run(self._session.close())


async def _next(replies: AsyncIterator[StepReply]) -> StepReply | None:
    return await anext(replies, None)


async def _close(replies: Any) -> None:
    await replies.aclose()
