"""Sentinels: servers that watch a primary and its replicas, and agree which one is the primary.

Sentinels may be cut off and then speak of the past, so all are asked, and the one with the newest
configuration (its epoch, which an election raises) is believed. That the server named is a primary is
checked when it is greeted. News of a fail-over is listened for at every sentinel: a primary that is cut
off from them, and not from us, must be left as soon as they agree on another one.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import hiredis

from holdfast.errors import ServiceError, StoreUnavailable
from service.common.background import keep_going
from service.store.address import Address
from service.store.error_table import RETRY_AFTER_S
from service.store.node import Node
from service.store.talk import Talk, talk_to

_log = logging.getLogger(__name__)

NEWS = "+switch-master"
"""Channel on which a sentinel says that it takes another server for the primary."""

LISTEN_PING_S = 1.0
"""A sentinel that is listened to is asked for a sign of life so often."""

LISTEN_PAUSE_S = 0.5
"""Before a sentinel that does not answer is tried again."""


class _Named(NamedTuple):
    """What a sentinel says: the epoch of its configuration, and where the primary is."""

    epoch: int
    host: str
    port: int


class Sentinels:
    """Finds a primary, and has it left when it is none any more.

    Args:
        addresses: Of the sentinels.
        group: Name of the primary among them.
        primary: How to greet the primary.
        timeout_s: Longest wait for a sentinel.
    """

    def __init__(
        self, addresses: Sequence[Address], group: str, primary: Address, *, timeout_s: float
    ) -> None:
        self._addresses = addresses
        self._group = group
        self._primary = primary
        self._timeout_s = timeout_s
        self._listening: list[asyncio.Task[None]] = []

    async def locate(self) -> Address:
        """Asks where the primary is.

        Raises:
            StoreUnavailable: No sentinel answers, or none knows a primary of that name.
        """
        said = await self._hear()
        named = [answer for answer in said if isinstance(answer, _Named)]
        if named:
            newest = max(named, key=lambda answer: answer.epoch)
            return self._primary.at(newest.host, newest.port)
        why = "; ".join(map(str, said)) or "no sentinel answers in time"
        raise StoreUnavailable(why, retry_after_s=RETRY_AFTER_S)

    def watch(self, node: Node) -> None:
        """Listens to the sentinels until `close`, and has `node` leave a server that they have given up."""
        self._listening = [
            asyncio.create_task(
                keep_going("store_sentinel", functools.partial(self._listen, address, node)),
                name=f"sentinel {address}",
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Stops listening."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    async def _hear(self) -> list[_Named | str]:
        """Asks all sentinels, and waits for most of them: one that is silent must not hold up the rest."""
        asking = {asyncio.create_task(self._ask(address)) for address in self._addresses}
        said: list[_Named | str] = []
        try:
            async with asyncio.timeout(self._timeout_s / 2):
                for answer in asyncio.as_completed(asking):
                    said.append(await answer)
                    if sum(isinstance(one, _Named) for one in said) > len(self._addresses) // 2:
                        break
        except TimeoutError:
            pass  # what was heard has to do
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return said

    async def _ask(self, address: Address) -> _Named | str:
        """Returns what a sentinel says, or why it says nothing."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                talk_to(address, self._timeout_s, _name(address)) as talk,
            ):
                place = await talk.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._group)
                if place is None:
                    return f"sentinel {address} knows no primary named {self._group!r}"
                fields = await talk.ask("SENTINEL", "MASTER", self._group)
            facts = dict(zip(fields[::2], fields[1::2], strict=True))
            return _Named(int(facts[b"config-epoch"]), place[0].decode(), int(place[1]))
        except (OSError, TimeoutError, EOFError) as error:
            return f"sentinel {address}: {str(error) or 'no answer in time'}"
        except ServiceError as error:
            return error.message
        except (LookupError, TypeError, ValueError, AttributeError, hiredis.HiredisError):
            return f"sentinel {address}: what it says cannot be read"  # the others are asked as well

    async def _listen(self, address: Address, node: Node) -> None:
        try:
            async with talk_to(address, self._timeout_s, _name(address)) as talk:
                async with asyncio.timeout(self._timeout_s):
                    await talk.ask("SUBSCRIBE", NEWS)
                await self._follow(node)  # what was said before we listened
                async for message in _messages(talk, LISTEN_PING_S, self._timeout_s):
                    if message[0] == b"message" and message[2].split()[0] == self._group.encode():
                        await self._follow(node)
        except (OSError, TimeoutError, EOFError, ServiceError) as error:
            _log.debug("sentinel %s: %s", address, error)
        await asyncio.sleep(LISTEN_PAUSE_S)

    async def _follow(self, node: Node) -> None:
        place = await self.locate()
        if place != node.address:
            node.leave(f"the sentinels name {place} as the primary")


def _name(address: Address) -> str:
    return f"sentinel {address}"


async def _messages(talk: Talk, ping_s: float, timeout_s: float) -> AsyncIterator[list[Any]]:
    """Yields what comes, and makes sure that the sentinel is there.

    Raises:
        TimeoutError: It gives no sign of life.
    """
    while True:
        try:
            async with asyncio.timeout(ping_s):
                message = await talk.read()
        except TimeoutError:
            async with asyncio.timeout(timeout_s):
                message = await talk.ask("PING")
        yield message
