"""Confirms that what a server has committed is on its disk, or on its replicas.

WAIT and WAITAOF wait for the writes of the connection that asks, and hold up every command behind them. So
they have connections of their own, and each wait begins with the write of a marker: whatever the server
answered before, on any connection, lies before the marker. All who ask while a wait is under way share the
next one, so one wait serves a batch and more, and commits never queue behind it.

A wait says nothing about writes that went to another server. The connection that carries the commits knows
whom it speaks to, by process and replication history; after each wait its own connection must say the same,
and the first must not have been made anew meanwhile. A primary that was demoted and promoted again has
another history, so it does not confirm what it may have thrown away.

Nor is WAITAOF always to be believed. Where the file is synced every second, Redis before 7.4.3 and every
Valkey looked at so far (9.1.2) count as synced what is only written (redis/redis#13793). So the version is
looked at, and with Valkey the policy, after each wait.
"""

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis

from holdfast.errors import AckLevelNotReached, AckLevelUnsupported, StoreUnavailable
from service.store.connection import StoreConnection, identity_in
from service.store.protocol import AckLevel

RETRY_AFTER_S = 0.1
"""What a caller is told whose chunk was not confirmed: it has waited already."""

FSYNCED_SINCE = {b"valkey": (8, 0, 0), b"redis": (7, 4, 3)}
"""Oldest versions whose WAITAOF can be believed; that of Valkey only with `appendfsync always`."""


@dataclass(frozen=True)
class AckSettings:
    """What is asked of the store beyond its primary's memory.

    Attributes:
        level: Of chunks that ask for none, and of opening and deleting sessions.
        replicas_required: Replicas that make a commit `replicated`; 0: the level is not offered.
        timeout_s: Longest wait of a caller for its level, > 0.
    """

    level: AckLevel = AckLevel.MEMORY
    replicas_required: int = 0
    timeout_s: float = 5.0


ASK_POLICY = ("CONFIG", "GET", "appendfsync")


class AckSupport:
    """Which levels a server is set up to give.

    Args:
        info: Its INFO.
        policy: Its reply to `ASK_POLICY`.
        settings: What is asked of it.
    """

    def __init__(self, info: bytes, policy: Any, settings: AckSettings) -> None:
        self._reasons = {
            AckLevel.FSYNCED: _why_not_believed(info, policy) or _why_not_written(info),
            AckLevel.REPLICATED: ""
            if settings.replicas_required
            else "it needs --replicas-required N, N >= 1",
        }
        self._online_count = len(re.findall(rb"^slave\d+:.*state=online", info, re.MULTILINE))
        self._settings = settings

    def check(self, level: AckLevel) -> None:
        """Makes sure that the server is set up to give a level, whether or not it could now.

        Raises:
            AckLevelUnsupported: It is not.
        """
        for part in level:
            if self._reasons[part]:
                raise AckLevelUnsupported(
                    f"level {part} is not available: {self._reasons[part]}", field="ack_level"
                )

    def check_default(self) -> None:
        """Makes sure that a server that starts can give its level from the start.

        Raises:
            AckLevelUnsupported: It cannot.
        """
        self.check(self._settings.level)
        required = self._settings.replicas_required
        if AckLevel.REPLICATED in self._settings.level and self._online_count < required:
            raise AckLevelUnsupported(
                f"level replicated needs {required} connected replicas (--replicas-required), "
                f"{self._online_count} are connected",
                field="ack_level",
            )


def not_reached(level: AckLevel, why: str) -> AckLevelNotReached:
    """Returns the error of a chunk that is not known to be as durable as was asked."""
    return AckLevelNotReached(
        f"applied, but not known to be {level}: {why}; sent again, it is a replay",
        retry_after_s=RETRY_AFTER_S,
    )


class Confirmer:
    """Confirms what one server holds, at any level.

    Args:
        connection: Carries reads and commits.
        marker: Gives a key to write on the same server, before each wait.
        settings: How many replicas, and how long to wait.
    """

    def __init__(
        self, connection: StoreConnection, marker: Callable[[], bytes], settings: AckSettings
    ) -> None:
        timeout_ms = math.ceil(settings.timeout_s * 1000)
        self._timeout_s = settings.timeout_s
        self._lanes = {
            AckLevel.FSYNCED: _Lane(
                connection, marker, ("WAITAOF", 1, 0, timeout_ms), 1, settings.timeout_s
            ),
            AckLevel.REPLICATED: _Lane(
                connection,
                marker,
                ("WAIT", settings.replicas_required, timeout_ms),
                settings.replicas_required,
                settings.timeout_s,
            ),
        }

    async def confirm(self, level: AckLevel, epoch: int) -> AckLevelNotReached | None:
        """Waits until all that the server has answered so far is as durable as the level says.

        Args:
            level: Above MEMORY.
            epoch: The connection's, as it was before what is to be confirmed was read or committed.

        Returns:
            None, or why it is not.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                whys = await asyncio.gather(*(self._lanes[part].wait(epoch) for part in level))
        except TimeoutError:
            whys = [f"not within {self._timeout_s:g} s"]
        why = next(filter(None, whys), "")
        if not why:
            return None
        return not_reached(level, why)

    async def close(self) -> None:
        """Ends the waits under way."""
        for lane in self._lanes.values():
            await lane.close()


class _Lane:
    """Waits of one kind, one at a time, over a connection that is opened when it is needed.

    Args:
        connection: Carries the commits.
        marker: Gives the key to write.
        command: WAIT or WAITAOF, with its arguments.
        required: Copies it must count.
        timeout_s: How long the command may take.
    """

    def __init__(
        self,
        connection: StoreConnection,
        marker: Callable[[], bytes],
        command: tuple[Any, ...],
        required: int,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._marker = marker
        self._command = command
        self._required = required
        self._timeout_s = timeout_s
        self._own: StoreConnection | None = None
        self._own_epoch = 0
        self._running: asyncio.Task[tuple[int, str]] | None = None
        self._next: asyncio.Task[tuple[int, str]] | None = None

    async def wait(self, epoch: int) -> str:
        """Takes part in the next wait; returns why it does not confirm the epoch, "" if it does."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running), name="confirmation")
        confirmed, why = await asyncio.shield(self._next)
        if why or confirmed == epoch:
            return why
        return "the connection to the store was made anew since, perhaps to another server"

    async def close(self) -> None:
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._drop()

    async def _run(self, before: asyncio.Task[tuple[int, str]] | None) -> tuple[int, str]:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None  # who comes from here on shares the next wait
        epoch = self._connection.epoch
        try:
            why = await self._mark_and_wait(epoch)
        except StoreUnavailable as error:
            await self._drop()
            why = error.message
        if self._connection.epoch != epoch:
            why = why or "the connection to the store was lost meanwhile"
        return epoch, why

    async def _mark_and_wait(self, epoch: int) -> str:
        """Waits for all that the server has answered until now; returns why that failed, or ""."""
        own = await self._open(epoch)
        replies = [own.execute("SET", self._marker(), b""), own.execute(*self._command), *own.identify()]
        is_about_disk = self._command[0] == "WAITAOF"
        if is_about_disk:
            replies.append(own.execute(*ASK_POLICY))
        marked, counted, server, replication, *policy = await asyncio.gather(*replies)
        identity = identity_in((server, replication))
        if identity is None:
            return "the store does not say which server it is: let this user call INFO"
        if identity != self._connection.identity:
            await self._part(epoch)
            return "the store is another server than before, or was not the primary all the time"
        if is_about_disk and (why := _why_not_believed(server, policy[0])):
            return why
        for reply in (marked, counted):
            if isinstance(reply, hiredis.ReplyError):
                return f"store: {reply}"
        count = counted[0] if isinstance(counted, list) else counted
        if count < self._required:
            return f"{count} of {self._required} copies within {self._timeout_s:g} s"
        return ""

    async def _open(self, epoch: int) -> StoreConnection:
        """Returns a connection made in this epoch."""
        if self._own is None or not self._own.is_connected or self._own_epoch != epoch:
            await self._drop()
            self._own, self._own_epoch = self._connection.sibling(self._timeout_s), epoch
            await self._own.open()
        return self._own

    async def _part(self, epoch: int) -> None:
        """Gives up both connections, so that the next epoch has one server behind both."""
        if self._connection.epoch == epoch:
            self._connection.leave("its server is not the one that confirms")
        await self._drop()

    async def _drop(self) -> None:
        if self._own is not None:
            own, self._own = self._own, None
            await own.close()


def _why_not_believed(info: bytes, policy: Any) -> str:
    """Returns why WAITAOF of a server says nothing, or ""."""
    found = re.search(rb"^valkey_version:(\S+)", info, re.MULTILINE)
    name = b"valkey" if found else b"redis"
    found = found or re.search(rb"^redis_version:(\S+)", info, re.MULTILINE)
    text = found[1] if found else b"of unknown version"
    store = f"the store is {name.decode()} {text.decode()}"
    least = FSYNCED_SINCE[name]
    if tuple(map(int, re.findall(rb"\d+", text)[:3])) < least:
        return f"{store}, whose WAITAOF needs {'.'.join(map(str, least))} or newer"
    if name == b"valkey" and policy != [b"appendfsync", b"always"]:
        policy_text = policy[1].decode() if isinstance(policy, list) and len(policy) == 2 else "not known"
        return (
            f"{store} and its appendfsync is {policy_text}: its WAITAOF answers too early; set appendfsync "
            "always, and let this user call CONFIG GET"
        )
    return ""


def _why_not_written(info: bytes) -> str:
    if re.search(rb"^aof_enabled:1", info, re.MULTILINE):
        return ""
    return "the append-only file of the store is off: set appendonly yes"
