"""One channel of gRPC, and the calls over it, so that all of it can be let go of.

gRPC lives in a process as long as one of its channels or calls does, and both are kept by whoever keeps
a stub, a stream, or an error whose traceback has seen one. So nothing of grpc.aio is handed out: there is
a `Connection` or a `Stream`, which are empty once they are closed, and errors that remember nothing of it.
"""

import asyncio
import contextlib
import functools
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from holdfast.client import forks
from holdfast.client.descriptors import check_descriptors
from holdfast.errors import ClientClosed, ServerUnavailable, WrongEventLoop
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1 import holdfast_pb2_grpc as stubs

SUSPECT_AFTER_S = 0.5
"""A connection is not given up for less silence: short time limits would connect again and again."""

SEE_OUT_S = 1.0
"""For calls that were cut off to end; it takes a moment."""

FORK_POLL_S = 0.005
"""So often a call looks whether a fork is over."""

_METHODS = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].methods
_UNARY = {method.name for method in _METHODS if not method.client_streaming}
_STREAMS = {method.name for method in _METHODS if method.client_streaming}
_TASKS_OF_CALLS = ("_AioCall.", "UnaryUnaryCall.", "StreamStreamCall.", "UnaryStreamCall.")


class Home:
    """Where the connections of a client may be used: in one process, by one loop, until it is closed."""

    def __init__(self) -> None:
        self._generation = forks.generation()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_closed = False

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made the client."""
        return self._generation != forks.generation()

    @property
    def is_loop_gone(self) -> bool:
        """Whether the loop that the client belonged to has been closed."""
        return self._loop is not None and self._loop.is_closed()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of the first call; None before it."""
        return self._loop

    def check(self) -> None:
        """Makes sure that the client may be used here; its first use says which loop is its own.

        Raises:
            ClientForked, ClientClosed, WrongEventLoop: It may not.
        """
        forks.check_same_process(self._generation)
        if self.is_closed:
            raise ClientClosed("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongEventLoop(
                "this client was first used on another event loop, and works on that one only: make one "
                "AsyncClient for each loop, or use holdfast.Client, which any thread may call"
            )


class Connection:
    """A channel, opened with the first call. Has the rpcs as methods, as a stub of grpc.aio does.

    Args:
        home: Where it may be used.
        open_channel: Opens the channel.

    Attributes:
        home: Where it may be used.
        heard_s: Monotonic time at which something came back over it last.
        successor: The connection that has taken its place.
    """

    def __init__(self, home: Home, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self.home = home
        self.heard_s = 0.0
        self.successor: Connection | None = None
        self._open_channel = open_channel
        self._opened_s = 0.0
        self._ended_s = -math.inf
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._under_way = 0
        self._idle = asyncio.Event()

    def __getattr__(self, rpc: str) -> Any:
        if rpc in _UNARY:
            return functools.partial(self.current().unary, rpc)
        if rpc in _STREAMS:
            return functools.partial(self.current().stream, rpc)
        raise AttributeError(rpc)

    @property
    def is_open(self) -> bool:
        """Whether it has a channel."""
        return self._channel is not None

    def current(self) -> "Connection":
        """Returns itself, or what has taken its place."""
        connection = self
        while connection.successor is not None:
            connection = connection.successor
        return connection

    def is_doubtful(self, waited_s: float) -> bool:
        """Whether a call that waited for so long in vain is reason enough to connect anew."""
        now_s = time.monotonic()
        if now_s - self._opened_s < SUSPECT_AFTER_S:
            return False
        return waited_s >= SUSPECT_AFTER_S or now_s - self.heard_s >= SUSPECT_AFTER_S

    def succeeded_by(self, open_channel: Callable[[], grpc.aio.Channel]) -> "Connection":
        """Puts a new connection in its place."""
        self.successor = Connection(self.home, open_channel)
        return self.successor

    async def retire(self, grace_s: float) -> None:
        """Closes it once no call uses it any more, or after a grace."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        await self.close()

    async def close(self) -> bool:
        """Ends the calls, and lets go of the channel and of them; returns whether there were any."""
        channel, self._channel, self._stub = self._channel, None, None
        was_busy = self._under_way > 0
        if channel is not None:
            await channel.close()
        for stream in list(self._streams):
            stream.let_go()
        del channel
        if time.monotonic() < self._ended_s + SEE_OUT_S and not self.home.is_loop_gone:
            await _see_calls_out()
        return was_busy

    def cut(self) -> bool:
        """Ends the calls and lets go of the channel, without waiting; returns whether there were any."""
        channel, self._channel, self._stub = self._channel, None, None
        was_busy = self._under_way > 0
        if channel is not None:
            with contextlib.suppress(StopIteration):
                channel.close().send(None)  # without a grace there is nothing in it to wait for
        for stream in list(self._streams):
            stream.let_go()
        return was_busy

    def inherited(self) -> Iterable[object]:
        """Returns what keeps its part of gRPC alive."""
        return [self, *self._streams]

    # -- calls --------------------------------------------------------------------------------

    async def unary(self, rpc: str, request: Any, *, timeout: float, metadata: Any) -> Any:
        """Calls an rpc, as the method of a stub does."""
        while forks.is_forking():  # noqa: ASYNC110 -- forks know of no loop, and take a moment
            await asyncio.sleep(FORK_POLL_S)
        call = self._begun(getattr(self._opened(), rpc)(request, timeout=timeout, metadata=metadata))
        try:
            reply = await call
        except BaseException as error:  # noqa: BLE001 -- raised again, without gRPC's frames
            failure = self.explained(error)
        else:
            self.heard_s = time.monotonic()
            return reply
        finally:
            del call
        try:
            raise failure
        finally:
            del failure

    def stream(self, rpc: str, *, metadata: Any) -> "Stream":
        """Begins a call with streams both ways."""
        stream = Stream(self, self._begun(getattr(self._opened(), rpc)(metadata=metadata)))
        self._streams.add(stream)
        return stream

    def emission(self, rpc: str, request: Any, *, metadata: Any) -> "Stream":
        """Begins a call with one request and a stream of replies."""
        stream = Stream(self, self._begun(getattr(self._opened(), rpc)(request, metadata=metadata)))
        self._streams.add(stream)
        return stream

    def _opened(self) -> Any:
        """Returns the stub; opens the channel if this is the first call.

        Raises:
            HoldfastError: The client may not be used here, or too many files are open.
        """
        self.home.check()
        if self._stub is None:
            if forks.is_forking():
                raise ServerUnavailable("cannot connect: the process forks")
            try:
                check_descriptors()
            except OSError as error:
                raise ServerUnavailable(f"cannot connect: {error.strerror}") from None
            self._channel = self._open_channel()
            self._stub = stubs.StreamingInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
            self._opened_s = self.heard_s = time.monotonic()
        return self._stub

    def _begun(self, call: Any) -> Any:
        self._under_way += 1
        self._idle.clear()
        call.add_done_callback(self._ended)
        return call

    def _ended(self, _: object) -> None:
        self._under_way -= 1
        self._ended_s = time.monotonic()
        if self._under_way == 0:
            self._idle.set()

    def explained(self, error: BaseException) -> BaseException:
        """Returns what an error of gRPC means here, without what its traceback keeps alive."""
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if isinstance(error, asyncio.CancelledError | grpc.aio.UsageError) and not _is_task_cancelled():
            return self.closed_error()
        return error

    def closed_error(self) -> Exception:
        """Returns the error of calls that end because their connection was closed under them."""
        if self.home.is_closed:
            return ClientClosed("the client was closed while the call was under way")
        empty = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, "the call was cut off")


class Stream:
    """A call of grpc.aio that streams, as far as clients use it.

    Attributes:
        connection: Over which it goes.
        since_s: Monotonic time of its start or of the last message that came.
    """

    def __init__(self, connection: Connection, call: Any) -> None:
        self.connection = connection
        self._call = call
        self._waiting: set[asyncio.Task[Any]] = set()
        self._woken: set[asyncio.Task[Any]] = set()
        self.since_s = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._call is None or self._call.done()

    async def write(self, request: Any) -> None:
        """Sends a message."""
        await self._do(self._usable().write(request))

    async def read(self) -> Any:
        """Returns the next message, or grpc.aio.EOF."""
        message = await self._do(self._usable().read())
        self.connection.heard_s = self.since_s = time.monotonic()
        return message

    async def done_writing(self) -> None:
        """Says that no more messages come."""
        await self._do(self._usable().done_writing())

    async def code(self) -> grpc.StatusCode:
        """Waits for the end and returns its status code."""
        code: grpc.StatusCode = await self._do(self._usable().code())
        return code

    def cancel(self) -> None:
        """Ends the call, unless it has ended."""
        if self._call is not None and not self.connection.home.is_inherited:
            self._call.cancel()

    def let_go(self) -> None:
        """Forgets the call, which was cut off.

        Who waits for it is woken up: a write that waits for a call to begin is not told by grpc.aio that it
        was cut off before.
        """
        self._call = None
        for task in self._waiting - self._woken:  # twice would look like a cancellation by its caller
            self._woken.add(task)
            task.cancel()

    def _usable(self) -> Any:
        if self._call is None:
            raise self.connection.closed_error()
        self.connection.home.check()
        return self._call

    async def _do(self, doing: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None, "bug: nothing is awaited outside a task"
        self._waiting.add(task)
        try:
            return await doing
        except BaseException as error:  # noqa: BLE001 -- raised again, without gRPC's frames
            if task in self._woken:
                task.uncancel()
            failure = self.connection.explained(error)
        finally:
            self._waiting.discard(task)
            self._woken.discard(task)
            del doing
        try:
            raise failure
        finally:
            del failure


def _is_task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _see_calls_out() -> None:
    """Waits until gRPC itself has nothing more to do for calls that were cut off."""
    own = {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "").startswith(_TASKS_OF_CALLS)
    }
    if own:
        await asyncio.wait(own, timeout=SEE_OUT_S)
