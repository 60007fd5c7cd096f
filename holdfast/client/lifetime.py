"""Where and how long a client may be used: on the event loop that used it first, until it is closed."""

import asyncio
from collections.abc import Callable

from holdfast.errors import ClientClosed, WrongEventLoop


class Lifetime:
    """Knows the client's event loop and whether the client is closed.

    Args:
        check_first: Raises what else forbids the use of the client.

    Attributes:
        is_over: The client is closed.
    """

    def __init__(self, check_first: Callable[[], None] = lambda: None) -> None:
        self._check_first = check_first
        self._closed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_over = False

    @property
    def closed(self) -> "asyncio.Future[None]":
        """Is done once the client is closed, for all who wait for something; after the first check."""
        assert self._closed is not None, "bug: nothing was checked"
        return self._closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The client's event loop; known after the first check."""
        return self.closed.get_loop()

    @property
    def is_here(self) -> bool:
        """Whether the loop that runs is its own, as in no child of a fork, and it is not closed."""
        return not self.is_over and self._loop is not None and self._loop is _running_loop()

    def check(self) -> None:
        """Makes sure that the client may be used here and now.

        Raises:
            ClientClosed: It is closed.
            WrongEventLoop: Another event loop runs than the one that used it first, or none.
        """
        if self.is_here:
            return
        running = _running_loop()
        if self.is_over:
            raise ClientClosed("the client is closed")
        self._check_first()
        if running is None:
            raise WrongEventLoop(
                "no event loop runs: use AsyncClient in a coroutine, or take holdfast.Client"
            )
        if self._closed is None:
            self._closed = running.create_future()
            self._loop = running
        elif self._loop is not running:
            raise WrongEventLoop(
                "this client was first used on another event loop, and works on that one only: make one "
                "AsyncClient for each loop, or use holdfast.Client, which any thread may call"
            )

    def check_before_sending(self) -> None:
        """The same at the beginning of a call; the error says that nothing was sent.

        Raises:
            ClientClosed, WrongEventLoop: As `check`.
        """
        try:
            self.check()
        except (ClientClosed, WrongEventLoop) as error:
            error.tell("nothing was sent")
            raise

    def end(self) -> None:
        """Closes it; everything that waits is told."""
        self.is_over = True
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def explain(self, error: BaseException) -> BaseException:
        """Returns what a cancelled call raises: ClientClosed, if closing the client has cancelled it."""
        task = asyncio.current_task()
        if self.is_over and isinstance(error, asyncio.CancelledError) and task and not task.cancelling():
            return ClientClosed("the client was closed during the call")
        return error

    async def sleep(self, seconds: float) -> None:
        """Waits for so long, or until the client is closed."""
        await asyncio.wait((self.closed,), timeout=seconds)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
