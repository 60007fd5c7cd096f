"""Where and how long a client may be used: on the event loop it was made on, until it is closed."""

import asyncio

from holdfast.errors import ClientClosed


class Lifetime:
    """Knows the client's event loop and whether the client is closed.

    Attributes:
        loop: The event loop that runs now.
        closed: Is done once the client is closed; whoever waits waits for it too.

    Raises:
        RuntimeError: No event loop runs.
    """

    def __init__(self) -> None:
        loop = _running_loop()
        if loop is None:
            raise RuntimeError(
                "no event loop runs: make an AsyncClient in the coroutine that uses it, or take holdfast.Client"
            )
        self.loop = loop
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def is_over(self) -> bool:
        """Whether the client is closed."""
        return self.closed.done()

    def check(self) -> None:
        """Makes sure that the client may be used here and now.

        Raises:
            ClientClosed: It is closed.
            RuntimeError: Another event loop runs, or none.
        """
        running = _running_loop()
        if running is not self.loop:
            raise RuntimeError(
                f"this client belongs to the event loop it was made on, and {'another' if running else 'none'} "
                "runs here: make one AsyncClient for each loop; nothing was sent"
            )
        if self.is_over:
            raise ClientClosed("the client is closed", code="CANCELLED")

    def check_before_sending(self) -> None:
        """The same at the beginning of a call; the error says that nothing was sent.

        Raises:
            ClientClosed, RuntimeError: As `check`.
        """
        try:
            self.check()
        except ClientClosed as error:
            error.tell("nothing was sent")
            raise

    def end(self) -> None:
        """Closes it; everything that waits is told."""
        if not self.is_over:
            self.closed.set_result(None)

    def explain(self, error: BaseException) -> BaseException:
        """Returns what to raise for the cancellation of a call: ClientClosed, if closing the client caused it."""
        task = asyncio.current_task()
        if self.is_over and isinstance(error, asyncio.CancelledError) and task and not task.cancelling():
            return ClientClosed("the client was closed during the call", code="CANCELLED")
        return error

    async def sleep(self, seconds: float) -> None:
        """Waits for so long, or until the client is closed."""
        await asyncio.wait((self.closed,), timeout=seconds)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
