"""Events from a Redis stream, by a consumer group whose entries one pipe reads at a time.

A group gives each entry to whichever consumer asks, so two that read at once would break the order of a
session. Here a *lease*, a key beside the stream, says who reads. Every read goes through one script that
looks at the lease first; so whoever has it has read all that was read since it was taken, and began with
all that was pending then. A pipe without it stands by. One that is started again, under the same name,
need not wait until the lease of its predecessor ends.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions

from holdfast.pipe.events import Raw
from holdfast.pipe.failures import Replaced
from holdfast.pipe.places import place_of
from holdfast.pipe.redis_link import PASSING, Insistence, StreamAddress
from holdfast.pipe.sources import OthersTurn

LEASE_S = 10.0
"""A pipe that is silent for so long has died, or is held up: another one takes its turn."""

_WAKE_MS = 500
_CLAIMED_AT_ONCE = 1000
_BEGIN = b"0-0"
_LOST = "NOTHOLDER"

_UNDER_LEASE = f"""
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then return redis.error_reply('{_LOST} ' .. (holder or '')) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if not ARGV[3] then return 1 end
return redis.call(unpack(ARGV, 3))
"""
"""Runs a command if the lease is ours, and prolongs it. KEYS: lease, stream; ARGV: who, ms, command."""

_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, -18) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class StreamSource:
    """The entries of a stream, in order.

    Args:
        address: Of the stream.
        group: Consumer group; made, from the stream's first entry on, unless it is there.
        consumer: Name in the group; a process that is started under it replaces the one before.
        source_id: Names the stream in cursors.
        until_empty: End when nothing is left to read.
        say: Prints a line.
        lease_s: See `LEASE_S`.
    """

    def __init__(
        self,
        address: StreamAddress,
        *,
        group: str,
        consumer: str,
        source_id: str,
        until_empty: bool,
        say: Callable[[str], None],
        lease_s: float = LEASE_S,
    ) -> None:
        self.source_id = source_id
        self._address = address
        self._group = group
        self._consumer = consumer
        self._until_empty = until_empty
        self._say = say
        self._lease_ms = int(lease_s * 1000)
        self._lease = address.tagged(f"{group}:reader")
        self._who = f"{consumer} {secrets.token_hex(8)}"  # `_TAKE` cuts off the last 17 characters
        self._client = address.connect()
        self._insist = Insistence(address.shown, say)
        self._under_lease = self._client.register_script(_UNDER_LEASE)
        self._is_holder = False
        self._is_reading_pending = True
        self._last_read: bytes = _BEGIN
        self._last_given: bytes = _BEGIN
        self._keeper: asyncio.Task[None] | None = None

    async def read(self, most: int) -> Sequence[Raw] | None:
        """Does what `Source.read` says; waits until it is this pipe's turn, and a little for entries."""
        if not self._is_holder:
            await self._take()
        found = await self._insist(lambda: self._read(most))
        if found or self._is_reading_pending:
            return found
        if self._until_empty:
            return None
        await self._insist(self._wait)
        return found

    async def done(self, entries: Sequence[str]) -> None:
        """Acknowledges entries."""
        await self._insist(lambda: self._client.xack(self._address.stream, self._group, *entries))

    async def behind(self) -> str:
        """Returns the number of entries that are not acknowledged."""
        try:
            groups = await self._client.xinfo_groups(self._address.stream)
        except (*PASSING, exceptions.ResponseError):
            return ""
        group = next((group for group in groups if group["name"].decode() == self._group), None)
        if group is None or group.get("lag") is None:
            return ""
        return f"{group['lag'] + group['pending']:,} entries behind"

    async def close(self) -> None:
        """Lets the next pipe read at once."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._is_holder:
            try:
                await self._client.eval(_LET_GO, 1, self._lease, self._who)
            except PASSING as error:
                self._say(f"{self._address.shown}: {error}: the next pipe waits until the lease ends")
        await self._client.aclose()

    # -- whose turn it is -------------------------------------------------------------------------

    async def _take(self) -> None:
        """Waits for the lease, and then claims all that is pending."""
        await self._insist(self._make_group)
        is_waiting = False
        while not await self._insist(
            lambda: self._client.eval(_TAKE, 1, self._lease, self._who, self._lease_ms, self._consumer)
        ):
            if not is_waiting:
                self._say(f"{self._address.shown}: another pipe reads the group {self._group}: standing by")
            is_waiting = True
            await asyncio.sleep(self._lease_ms / 4000)
        if is_waiting:
            self._say(f"{self._address.shown}: reading the group {self._group}")
        self._is_holder = True
        self._is_reading_pending, self._last_read = True, _BEGIN
        self._last_given = await self._insist(self._last_delivered)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        await self._insist(self._claim)

    async def _keep(self) -> None:
        """Prolongs the lease while nothing is read."""
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            if self._is_holder:
                try:
                    await self._guarded()
                except (OthersTurn, Replaced):
                    pass  # the next read finds out, too
                except PASSING:
                    continue  # said by those who wait for an answer

    async def _guarded(self, *command: Any) -> Any:
        """Runs a command if this pipe still has the lease."""
        try:
            return await self._under_lease(
                keys=[self._lease, self._address.stream], args=[self._who, self._lease_ms, *command]
            )
        except exceptions.ResponseError as error:
            if _LOST not in str(error):
                raise
            self._is_holder = False
            holder = str(error).partition(_LOST)[2][1:]
            if holder[:-17] == self._consumer:
                raise Replaced(
                    f"{self._address.shown}: another process reads the group {self._group} as "
                    f"{self._consumer!r}; pipes that run at the same time need a --consumer each"
                ) from None
            raise OthersTurn(f"{self._address.shown}: another pipe reads the group {self._group}") from None

    async def _make_group(self) -> None:
        try:
            await self._client.xgroup_create(self._address.stream, self._group, id="0", mkstream=True)
        except exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _last_delivered(self) -> bytes:
        groups = await self._client.xinfo_groups(self._address.stream)
        [last] = [group["last-delivered-id"] for group in groups if group["name"].decode() == self._group]
        return bytes(last)

    async def _claim(self) -> None:
        """Makes all that is pending in the group this consumer's, whoever had read it."""
        start: bytes = _BEGIN
        while True:
            start, _, *deleted = await self._guarded(
                "XAUTOCLAIM", self._address.stream, self._group, self._consumer, 0, start,
                "COUNT", _CLAIMED_AT_ONCE, "JUSTID",
            )  # fmt: skip
            if deleted and deleted[0]:
                self._say(
                    f"{self._address.shown}: {len(deleted[0])} entries, {_text(deleted[0][0])} the first, "
                    "were deleted from the stream before they were done"
                )
            if start == _BEGIN:
                return

    # -- reading ----------------------------------------------------------------------------------

    async def _read(self, most: int) -> list[Raw]:
        """Reads what is pending, and what is new once nothing is."""
        start = self._last_read if self._is_reading_pending else b">"
        try:
            found = await self._guarded(
                "XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", most,
                "STREAMS", self._address.stream, start,
            )  # fmt: skip
        except PASSING:
            self._is_reading_pending = True  # an answer that was lost may have had entries
            raise
        entries = found[0][1] if found else []
        if entries:
            self._last_read = entries[-1][0]
            self._last_given = max(
                self._last_given, self._last_read, key=lambda entry: place_of(_text(entry))
            )
        elif self._is_reading_pending:
            self._is_reading_pending = False
            return await self._read(most)
        return [_raw(entry, fields) for entry, fields in entries]

    async def _wait(self) -> None:
        """Waits until the stream has an entry that the group has not given, or for a moment."""
        await self._client.xread({self._address.stream: self._last_given}, count=1, block=_WAKE_MS)


def _raw(entry: bytes, fields: list[bytes] | None) -> Raw:
    text = _text(entry)
    if fields is None:
        return Raw(place_of(text), text, None, "the entry was deleted from the stream before it was done")
    names, values = map(_text, fields[::2]), map(_text, fields[1::2])
    return Raw(place_of(text), text, dict(zip(names, values, strict=True)))


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
