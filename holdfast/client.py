"""The client without asyncio: the same calls, run by an event loop in a thread of its own.

So there is one implementation of positions, retries and resending, whichever way it is used.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from holdfast.aio import AsyncClient
from holdfast.columns import BatchReply
from holdfast.options import SessionId
from holdfast.reply import StepReply
from holdfast.rows import Rows
from holdfast.session import AsyncSession
from holdfast.tokens import Pieces, TokenSource
from holdfast.v1 import holdfast_pb2 as pb

Result = TypeVar("Result")


class _LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine to its end; an interrupt of the caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """Speaks to a Holdfast server. May be shared by threads.

    Args:
        address: HOST:PORT, or several; see `AsyncClient`.
        options: Keyword arguments of `AsyncClient`.
    """

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._thread = _LoopThread()
        try:
            self._client = self._thread.run(_create(address, options))
        except BaseException:
            self._thread.close()
            raise

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections; sessions live on in the store."""
        self._thread.run(self._client.close())
        self._thread.close()

    def session(
        self,
        session_id: SessionId = "",
        *,
        model: str = "",
        version: int = 0,
        must_be_new: bool = False,
        take_over: bool = False,
        initial_state: Mapping[str, Any] | None = None,
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
        session_ids: Iterable[SessionId],
        tokens: Rows,
        positions: Sequence[int] | None = None,
        **options: Any,
    ) -> BatchReply:
        """Applies the same number of tokens to each of many sessions; see `AsyncClient.step_batch`."""
        return self._thread.run(self._client.step_batch(model, session_ids, tokens, positions, **options))

    def get_session(self, session_id: SessionId) -> pb.Session:
        """Returns what is known of a session; see `AsyncClient.get_session`."""
        return self._thread.run(self._client.get_session(session_id))

    def release_session(self, session_id: SessionId, *, discard: bool = False) -> pb.ReleaseSessionResponse:
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


async def _create(address: str | Sequence[str], options: dict[str, Any]) -> AsyncClient:
    return AsyncClient(address, **options)


class Session:
    """One writer's session; see `AsyncSession`. Made by `Client.session`."""

    def __init__(self, thread: _LoopThread, session: AsyncSession) -> None:
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
            self._thread.run(_close(replies))

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
