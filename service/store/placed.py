"""A store of which a deployment has the keys under a prefix of its own."""

from collections.abc import Sequence

from service.store.keys import KeySpace
from service.store.protocol import AckLevel, Loaded, Refusals, Store, Writes
from service.store.safety import StoreUsage


class PlacedStore:
    """Implements `Store` on another one, in a key space.

    Args:
        store: Is asked for keys as they are in it.
        key_space: Says how they are.
    """

    def __init__(self, store: Store, key_space: KeySpace) -> None:
        self._store = store
        self._key_space = key_space

    async def load(self, keys: Sequence[bytes]) -> Sequence[Loaded]:
        """See `StateStore.load`."""
        return await self._store.load(self._key_space.placed(keys))

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """See `StateStore.commit`."""
        placed = [part._replace(keys=self._key_space.placed(part.keys)) for part in writes]
        return await self._store.commit(placed, ttl_s)

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """See `StateStore.confirm`."""
        return await self._store.confirm(self._key_space.placed(keys), level, epoch)

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """See `StateStore.set_aside`."""
        [placed] = self._key_space.placed((key,))
        return await self._store.set_aside(placed, record, ttl_s)

    async def time_to_live_s(self, key: bytes) -> float:
        """See `StateStore.time_to_live_s`."""
        [placed] = self._key_space.placed((key,))
        return await self._store.time_to_live_s(placed)

    async def describe(self) -> str:
        """See `Store.describe`."""
        return f"{await self._store.describe()}; its keys {self._key_space.pattern}"

    @property
    def epoch(self) -> int:
        """See `StateStore.epoch`."""
        return self._store.epoch

    @property
    def is_available(self) -> bool:
        """See `StateStore.is_available`."""
        return self._store.is_available

    def check_level(self, level: AckLevel) -> None:
        """See `StateStore.check_level`."""
        self._store.check_level(level)

    async def open(self) -> None:
        """See `Store.open`."""
        await self._store.open()

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    async def check_safe(self) -> StoreUsage:
        """See `Store.check_safe`."""
        return await self._store.check_safe()

    async def check_acks(self) -> None:
        """See `Store.check_acks`."""
        await self._store.check_acks()

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._store.ping()
