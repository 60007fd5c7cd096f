"""One primary: the connection to it, and what every topology asks of it.

A single server and the primary behind Sentinel are one node; a cluster has one per primary.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis

from holdfast.errors import AckLevelNotReached, ServiceError, StoreUnavailable
from service.store.address import Address
from service.store.confirmation import ASK_POLICY, AckSettings, AckSupport, Confirmer
from service.store.connection import Locate, Reply, StoreConnection
from service.store.error_table import RETRY_AFTER_S, error_of, means_demoted
from service.store.keys import KeySpace
from service.store.protocol import AckLevel
from service.store.safety import CONFIG_NAMES


class Node:
    """A primary.

    Args:
        locate: As in `StoreConnection`, as are the next three.
        timeout_s: See there.
        on_change: See there.
        must_be_primary: See there.
        acks: What is asked of it beyond its memory.
        marker: Gives a key of ours that it owns.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None] = lambda _: None,
        must_be_primary: bool = False,
        acks: AckSettings = AckSettings(),  # noqa: B008 -- frozen
        marker: Callable[[], bytes] = lambda: KeySpace().ack_marker,
    ) -> None:
        self._connection = StoreConnection(
            locate, timeout_s=timeout_s, on_change=on_change, must_be_primary=must_be_primary
        )
        self._acks = acks
        self._confirmer = Confirmer(self._connection, marker, acks)

    def __str__(self) -> str:
        return f"store {self._connection.address}"

    @property
    def address(self) -> Address | None:
        """Where it is, as far as known."""
        return self._connection.address

    @property
    def epoch(self) -> int:
        """Changes whenever another server may have taken this one's place."""
        return self._connection.epoch

    @property
    def is_connected(self) -> bool:
        """Whether it can be asked."""
        return self._connection.is_connected

    async def open(self) -> None:
        """Connects; see `StoreConnection.open`."""
        await self._connection.open()

    def begin(self) -> None:
        """Connects in the background."""
        self._connection.begin()

    async def wait_connected(self) -> None:
        """Waits for a connection; see `StoreConnection.wait_connected`."""
        await self._connection.wait_connected()

    async def close(self) -> None:
        """Closes for good."""
        await self._confirmer.close()
        await self._connection.close()

    def leave(self, why: str) -> None:
        """Drops the server and looks for the primary anew."""
        self._connection.leave(why)

    def send(self, request: Sequence[bytes | memoryview]) -> asyncio.Future[Reply]:
        """Sends a packed request; see `StoreConnection.send`."""
        return self._connection.send(request)

    def send_many(self, requests: Sequence[bytes]) -> asyncio.Future[list[Reply | StoreUnavailable]]:
        """Sends packed requests; see `StoreConnection.send_many`."""
        return self._connection.send_many(requests)

    async def ack_support(self) -> AckSupport:
        """Finds out which acknowledgement levels it can give.

        Raises:
            ServiceError: It gave no answer.
        """
        policy = await self._connection.execute(*ASK_POLICY)  # an error is no answer
        return AckSupport(await self.ask("INFO"), policy, self._acks)

    async def confirm(self, level: AckLevel, epoch: int) -> AckLevelNotReached | None:
        """Waits until all that it has answered is as durable as the level says; see `Confirmer`."""
        return await self._confirmer.confirm(level, epoch)

    async def ask(self, *command: Any) -> Reply:
        """Executes a command.

        Raises:
            ServiceError: What the error means, by `error_table`, or StoreUnavailable: no answer in time.
        """
        reply = await self._connection.execute(*command)
        if isinstance(reply, hiredis.ReplyError):
            raise self.refusal(str(reply))
        return reply

    @contextlib.contextmanager
    def reading(self, command: str) -> Iterator[None]:
        """Makes StoreUnavailable of the ValueError of a reply that cannot be one; drops the connection.

        Whatever came over it may belong to another request, so no other reply can be trusted either.
        """
        try:
            yield
        except ValueError:
            why = f"the reply to {command} cannot be one"
            self.leave(why)
            raise StoreUnavailable(f"{self}: {why}", retry_after_s=RETRY_AFTER_S) from None

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; a server that says it is no primary any more is left."""
        if means_demoted(message):
            self.leave(message)
        return error_of(message, str(self))

    async def info(self) -> dict[str, str]:
        """Returns what INFO says.

        Raises:
            StoreUnavailable: No answer in time, or INFO is not allowed.
        """
        lines = (await self.ask("INFO")).decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def config(self) -> dict[str, str]:
        """Returns the settings CONFIG_NAMES; empty where CONFIG is not allowed or not known.

        Raises:
            StoreUnavailable: No answer in time.
        """
        reply = await self._connection.execute("CONFIG", "GET", *CONFIG_NAMES)
        if isinstance(reply, hiredis.ReplyError):
            return {}
        texts = [part.decode(errors="replace") for part in reply]
        return dict(zip(texts[::2], texts[1::2], strict=True))
