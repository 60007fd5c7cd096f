"""Deletes many sessions together: each becomes a tombstone, as one that is deleted alone."""

from collections.abc import Callable, Mapping

from holdfast.errors import ServiceError, SessionNotFound
from service.engine.changes import Changes
from service.engine.report import SessionEvent
from service.engine.rules import check_incarnation
from service.store.protocol import StateStore
from service.store.record import Record


class Deletions:
    """Deletes sessions.

    Args:
        store: Where they live.
        changes: Writes tombstones there.
        on_event: Told of sessions that were deleted.
        tombstone_ttl_s: How long a deleted session is remembered as deleted.
    """

    def __init__(
        self,
        store: StateStore,
        changes: Changes,
        *,
        on_event: Callable[[SessionEvent], None] = lambda _: None,
        tombstone_ttl_s: float = 3600.0,
    ) -> None:
        self._store = store
        self._changes = changes
        self._on_event = on_event
        self._tombstone_ttl_s = tombstone_ttl_s

    async def delete(self, incarnations: Mapping[bytes, int]) -> list[Record | ServiceError]:
        """Replaces sessions by tombstones, in two round trips to the store.

        Args:
            incarnations: Which to delete, by key; 0 is any.

        Returns:
            The tombstone of each, also of one that was deleted before; or why it was not deleted.

        Raises:
            StoreUnavailable: Sessions may have been deleted or not; the same again is right.
        """
        keys, epoch = list(incarnations), self._store.epoch
        deleted: set[bytes] = set()

        def decide(key: bytes, stored: Record | None, _: bytes) -> Record:
            if stored is None:
                raise SessionNotFound("no session has this id", field="session_id")
            check_incarnation(stored, incarnations[key])
            if stored.deleted:
                return stored
            deleted.add(key)
            return stored.tombstone

        found = dict(zip(keys, await self._store.load(keys), strict=True))
        outcomes = await self._changes.make(found, decide, self._tombstone_ttl_s, epoch)
        for key in deleted:
            if isinstance(outcomes[key], Record):
                self._on_event(SessionEvent.DELETED)
        return [outcomes[key] for key in keys]
