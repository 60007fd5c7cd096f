"""The watched sessions of this process: has others tell of them, and hands on what they tell."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence

from holdfast.errors import ServiceError
from service.engine.watch_events import Event, Lease, decode_news, encode_lease
from service.engine.watched import Watched
from service.rpc.follower import Follower
from service.store.channels import Channels
from service.store.record import decode
from service.store.store import Store

_log = logging.getLogger(__name__)

TURN_S = 2.0
"""Between leases, and between looks at where the sessions stand."""

PEEK_COUNT = 256
"""Sessions whose place is read together."""

LEASE_S = 6.0
"""Others tell of a session for so long after the last lease that names it."""


class Watches:
    """Every watch of this process.

    Args:
        store: Where sessions live.
        timeout_s: Longest wait for it.
        on_any: Called with whether somebody, in any process, watches a session, when that changes.

    Attributes:
        channels: The connection over which processes tell each other.
        watched: The sessions that somebody watches, in any process, and that this one tells of.
    """

    def __init__(self, store: Store, *, timeout_s: float, on_any: Callable[[Watched | None], None]) -> None:
        self._store = store
        self._followers: dict[bytes, dict[Follower, bool]] = {}
        self._shared, self._own = store.channel("watched"), store.channel(f"watch:{secrets.token_hex(8)}")
        self.channels = Channels(
            store,
            (self._shared, self._own),
            timeout_s=timeout_s,
            on_message=self._hear,
            on_lost=self._wake_all,
        )
        self.watched = Watched(self._publish, lambda is_any: on_any(self.watched if is_any else None))

    @contextlib.contextmanager
    def following(self, key: bytes, follower: Follower, *, wants_state: bool) -> Iterator[None]:
        """Gives a follower what is told of a session, once `begin` has been awaited."""
        self._followers.setdefault(key, {})[follower] = wants_state
        try:
            yield
        finally:
            left = self._followers[key]
            del left[follower]
            if not left:
                del self._followers[key]
                self.channels.publish(self._shared, self._lease((key,), 0.0))

    async def begin(self, key: bytes) -> None:
        """Has others tell of a session from now on.

        Raises:
            StoreUnavailable: The channels of the store cannot be used; the text says why.
        """
        await self.channels.announce(self._shared, self._lease((key,), LEASE_S))

    async def look(self, key: bytes, follower: Follower) -> None:
        """Shows a follower the record of its session.

        Raises:
            ServiceError: It cannot be read.
        """
        seen_position = follower.position
        follower.needs_look = False
        [data] = await self._store.load((key,))
        if isinstance(data, ServiceError):
            raise data
        follower.looked(None if data is None else decode(data), seen_position)

    async def turn(self) -> None:
        """Renews the leases, and looks whether something has become of the sessions that nobody told."""
        await asyncio.sleep(TURN_S)
        if not self._followers or self.channels.trouble:
            return
        self.channels.publish(self._shared, self._lease(tuple(self._followers), LEASE_S))
        keys = list(self._followers)
        for start in range(0, len(keys), PEEK_COUNT):
            await self._peek(keys[start : start + PEEK_COUNT])

    def close(self) -> None:
        """Tells others nothing any more."""
        self.watched.close()

    async def _peek(self, keys: Sequence[bytes]) -> None:
        """Reads where sessions stand: not their states, which may be large."""
        seen = [
            (key, follower, follower.position) for key in keys for follower in self._followers.get(key, ())
        ]
        try:
            found = await self._store.heads(keys, with_idle=False)
        except ServiceError as error:
            _log.debug("watched sessions could not be looked at: %s", error)
            return
        stands = {one.key: (one.head.incarnation, one.head.position) for one in found}
        for key, follower, seen_position in seen:
            follower.peeked(stands.get(key), seen_position)

    def _publish(self, channel: bytes, message: bytes) -> bool:
        """Sends news to a process; what is for this one need not go through the store."""
        if channel != self._own:
            return self.channels.publish(channel, message)
        self._hear(channel, message)
        return True

    def _lease(self, keys: Sequence[bytes], duration_s: float) -> bytes:
        wants_state = {key: any(self._followers.get(key, {}).values()) for key in keys}
        return encode_lease(Lease(self._own, duration_s, wants_state))

    def _hear(self, channel: bytes, message: bytes) -> None:
        if channel == self._shared:
            self.watched.hear(message)
            return
        try:
            news = decode_news(message)
        except ValueError as error:
            _log.debug("not understood: %s", error)
            return
        for follower in self._followers.get(news.key, ()):
            if isinstance(news, Event):
                follower.saw(news)
            else:
                follower.changed()

    def _wake_all(self) -> None:
        """Has every watch see that the connection is lost."""
        for following in self._followers.values():
            for follower in following:
                follower.wake()
