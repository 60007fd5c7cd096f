"""A session without asyncio: the same calls; the source of a stream runs in the caller's own thread."""

import functools
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from typing import Any, Self, TypeVar, Unpack

from numpy.typing import NDArray

from holdfast.client.generated import GeneratedToken, GenerateOptions, reply_of
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, SessionId, StepOptions
from holdfast.client.pump import Pump
from holdfast.client.reply import StepReply
from holdfast.client.runner import Runner
from holdfast.client.session import AsyncSession, writer_of
from holdfast.client.sources import parts_of
from holdfast.client.tokens import Pieces, TokenSource
from holdfast.errors import HoldfastError
from holdfast.pending import PendingChunk
from holdfast.v1 import holdfast_pb2 as pb

Result = TypeVar("Result")


class Session:
    """One writer's session; see `AsyncSession`. Made by `Client.open_session`.

    Attributes:
        session_id: Its id.
        model: Name of its model.
        model_version: Version of its model.
        resumed: It existed when it was opened here.
    """

    def __init__(self, runner: Runner, session: AsyncSession) -> None:
        self._runner = runner
        self._writer = writer_of(session)
        self.session_id = session.session_id
        self.model = session.model
        self.model_version = session.model_version
        self.resumed = session.resumed

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes it here, as `close` does; after an error only if nothing is pending.

        Raises:
            ChunkPending: Chunks have no reply yet, and no other error says so.
        """
        self._writer.leave_block(kind)

    @property
    def position(self) -> int:
        """Tokens applied and answered."""
        return self._writer.position

    @property
    def history_digest(self) -> int:
        """Names the tokens up to `position`; see `AsyncSession.history_digest`."""
        return self._writer.history_digest

    @property
    def cursor(self) -> bytes:
        """The last cursor known to be stored with the session; see `AsyncSession.cursor`."""
        return self._writer.cursor

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """Chunks taken from the caller that have no reply yet; see `AsyncSession.pending`."""
        return self._writer.pending

    @property
    def incarnation(self) -> int:
        """Number of this life of the session."""
        return self._writer.incarnation

    def step(
        self,
        tokens: TokenSource,
        *,
        position: int | None = None,
        cursor: bytes | None = None,
        **options: Unpack[StepOptions],
    ) -> StepReply:
        """Applies one chunk and returns its reply; see `AsyncSession.step`."""
        step = self._writer.step(tokens, position=position, cursor=cursor, **options)
        return self._run(step, lambda reply: self._writer.take_back([reply]))

    def settle(self, timeout_s: float | None = None) -> list[StepReply]:
        """Has every pending chunk applied and returns their replies; see `AsyncSession.settle`."""
        return self._run(self._writer.settle(timeout_s), self._writer.take_back)

    def stream(
        self,
        tokens: Pieces,
        *,
        chunk: int = 1,
        max_in_flight: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Generator[StepReply, None, None]:
        """Applies many chunks and yields their replies in order; see `AsyncSession.stream`.

        An iterator is asked in the thread that reads the replies, and only while that waits for one: an
        interrupt reaches it, and so may a library that is bound to a thread.
        """
        pump = self._writer.pump(tokens, chunk=chunk, max_in_flight=max_in_flight, **options)
        if isinstance(tokens, AsyncIterable):
            replies = self._writer.replies(pump, tokens, chunk)
            return self._read(replies, lambda reply: self._writer.take_back([reply]))
        return self._drive(pump, tokens, chunk)

    def generate(
        self,
        max_tokens: int,
        prompt: TokenSource | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[GeneratedToken, None, None]:
        """Applies a prompt and yields the tokens that it generates; see `AsyncSession.generate`."""
        tokens = self._writer.generate(max_tokens, prompt, timeout_s=timeout_s, **options)
        return self._read(tokens, lambda token: self._writer.take_back([reply_of(token)]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Returns the stored state by name, without a batch axis."""
        return self._runner.run(self._writer.state())

    def fork(self, new_id: SessionId | NewId = NewId.FROM_SERVER) -> "Session":
        """Copies the session to another id; see `AsyncSession.fork`."""
        return Session(self._runner, AsyncSession(self._runner.run(self._writer.fork(new_id))))

    def fork_batch(self, new_ids: Iterable[SessionId]) -> OpenedBatch:
        """Copies the session to many ids; see `AsyncSession.fork_batch`."""
        return self._runner.run(self._writer.fork_batch(new_ids))

    def export(self) -> bytes:
        """Returns the session as a blob; see `AsyncSession.export`."""
        return self._runner.run(self._writer.export())

    def save_checkpoint(self, name: str, timeout_s: float | None = None) -> pb.Checkpoint:
        """Keeps the session under a name; see `AsyncSession.save_checkpoint`."""
        return self._runner.run(self._writer.save_checkpoint(name, timeout_s))

    def restore_checkpoint(self, name: str, timeout_s: float | None = None) -> None:
        """Puts the session back to a checkpoint; see `AsyncSession.restore_checkpoint`."""
        self._runner.run(self._writer.restore_checkpoint(name, timeout_s))
        self.model_version = self._writer.model_version

    def checkpoints(self) -> list[pb.Checkpoint]:
        """Returns the checkpoints of the session, the oldest first."""
        return self._runner.run(self._writer.checkpoints())

    def delete_checkpoint(self, name: str) -> None:
        """Deletes a checkpoint; see `AsyncSession.delete_checkpoint`."""
        self._runner.run(self._writer.delete_checkpoint(name))

    def close(self) -> None:
        """Ends its use here; the session lives on in the store. See `AsyncSession.close`."""
        self._writer.close()

    def delete(self) -> int:
        """Destroys the session in the store; see `AsyncSession.delete`."""
        return self._runner.run(self._writer.delete())

    def _run(self, coroutine: Coroutine[Any, Any, Result], take_back: Callable[[Result], None]) -> Result:
        """Runs a call; its error says what is pending, also where a closed client refuses it."""
        try:
            return self._runner.run(coroutine, take_back)
        except HoldfastError as error:
            self._writer.tell_pending(error)
            raise

    # -- streams ----------------------------------------------------------------------------------

    def _drive(self, pump: Pump, tokens: Pieces, chunk: int) -> Generator[StepReply, None, None]:
        """Yields the replies to what this thread fetches."""
        fetched: deque[Any] = deque()
        try:
            parts = parts_of(tokens, chunk)
            self._runner.run(pump.begin())
            is_empty = False
            while True:
                while not is_empty and len(fetched) < pump.room:
                    count = len(fetched)
                    fetched.extend(itertools.islice(parts, 1))  # no interrupt comes between next and append
                    is_empty = len(fetched) == count
                if not fetched and not pump.is_waiting:
                    break
                yield self._runner.run(pump.exchange(fetched), self._take_back)
        except HoldfastError as error:
            pump.keep(fetched)
            self._writer.tell_pending(error)
            raise
        finally:
            try:
                self._end(pump, fetched)
            except BaseException:  # an interrupt: without an end the session would be held for ever
                self._end(pump, fetched)
                raise

    def _end(self, pump: Pump, fetched: "deque[Any]") -> None:
        """Ends a stream, as often as it is asked to."""
        pump.keep(fetched)  # here, since the event loop may be closed by now; the turn is this stream's
        self._runner.post(pump.release)

    def _read(
        self, found: AsyncGenerator[Result, None], take_back: Callable[[Result], None]
    ) -> Generator[Result, None, None]:
        """Yields what comes of an asynchronous generator on the event loop."""
        leave = functools.cache(lambda: self._writer.leave(found))  # once, as often as it is posted

        def undo(one: Result | None) -> None:
            if one is not None:
                take_back(one)

        try:
            while (one := self._run(_next(found), undo)) is not None:
                yield one
        finally:
            try:
                self._runner.post(leave)
            except BaseException:  # an interrupt, as above
                self._runner.post(leave)
                raise

    def _take_back(self, reply: StepReply | None) -> None:
        if reply is not None:
            self._writer.take_back([reply])


async def _next(found: AsyncGenerator[Result, None]) -> Result | None:
    return await anext(found, None)
