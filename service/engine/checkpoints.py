"""Checkpoints: a session is kept, as it was last committed, under names beside its record, and put back.

Saving changes neither record nor stamp, so who writes to the session goes on. Putting it back is a commit
over the present stamp, in a new incarnation: all other writers are told that their session is no more.
"""

from collections.abc import Callable

from holdfast.errors import CheckpointNotFound, PositionConflict, TooManyCheckpoints
from service.engine.changes import MAX_ATTEMPTS, decode_loaded
from service.engine.checks import served_model
from service.engine.driver import Driver
from service.engine.meant import Meant, check_live, check_nonce, existing, live
from service.engine.report import SessionEvent
from service.engine.sessions import OpenSession
from service.model.protocol import Models
from service.store.beside import CheckpointHead
from service.store.protocol import (
    AckLevel,
    Found,
    StateStore,
    commit_one,
    confirm_one,
    load_one,
    load_one_with_cursor,
)
from service.store.record import draw_incarnation, encode


class Checkpoints:
    """Saves, lists, deletes and restores checkpoints.

    Args:
        models: The models served.
        store: Where sessions live.
        engine: Told when a record changes behind its back.
        on_event: Told of sessions that are put back.
        ttl_s: Time to live of a session that is put back; 0 is for ever.
        max_count: Most checkpoints of a session.
        ack_level: How durable a change must be before it is answered.
    """

    def __init__(
        self,
        models: Models,
        store: StateStore,
        engine: Driver,
        *,
        on_event: Callable[[SessionEvent], None] = lambda _: None,
        ttl_s: float,
        max_count: int,
        ack_level: AckLevel = AckLevel.MEMORY,
    ) -> None:
        self._models = models
        self._store = store
        self._engine = engine
        self._on_event = on_event
        self._ttl_s = ttl_s
        self._max_count = max_count
        self._ack_level = ack_level

    async def save(self, key: bytes, name: str, meant: Meant) -> CheckpointHead:
        """Keeps a session as it was last committed; one of that name is replaced.

        Args:
            key: Of the session's record.
            name: Of the checkpoint.
            meant: What the session must be.

        Raises:
            SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap,
            TooManyCheckpoints, RecordCorrupt, InvalidRequest, StoreFull: Nothing was changed.
            StoreUnavailable, AckLevelNotReached: It may have been saved; the same again is right.
        """
        meant.check()
        epoch = self._store.epoch
        data = await load_one(self._store, key)
        for _ in range(MAX_ATTEMPTS):
            record = live(decode_loaded(data), meant)
            saved = await self._store.save_checkpoint(key, record.stamp, name, self._max_count)
            if saved is None:
                raise TooManyCheckpoints(
                    f"the session has {self._max_count} checkpoints, and may not have more: delete one, or "
                    "save over one of the same name",
                    field="name",
                )
            if not isinstance(saved, Found):
                await confirm_one(self._store, key, self._ack_level, epoch)
                return saved
            data = saved.record
        raise PositionConflict("other writers keep changing this session")

    async def list(self, key: bytes) -> list[CheckpointHead]:
        """Returns the checkpoints of a session, the oldest first.

        Raises:
            SessionNotFound, SessionDeleted, RecordCorrupt, StoreUnavailable: As named.
        """
        existing(decode_loaded(await load_one(self._store, key)))
        return sorted(await self._store.list_checkpoints(key), key=lambda head: (head.saved_s, head.name))

    async def delete(self, key: bytes, name: str) -> None:
        """Deletes a checkpoint.

        Raises:
            CheckpointNotFound, SessionNotFound, SessionDeleted, RecordCorrupt: Nothing was changed.
            StoreUnavailable, AckLevelNotReached: It may have been deleted.
        """
        epoch = self._store.epoch
        existing(decode_loaded(await load_one(self._store, key)))
        if not await self._store.delete_checkpoint(key, name):
            raise _not_there(name)
        await confirm_one(self._store, key, self._ack_level, epoch)

    async def restore(self, key: bytes, name: str, incarnation: int, nonce: int) -> OpenSession:
        """Puts a session back to a checkpoint, in a new incarnation.

        Args:
            key: Of the session's record.
            name: Of the checkpoint, which stays.
            incarnation: In which the session must be; 0 is any.
            nonce: Random, the same in every attempt, 1 .. 2^53 - 1; 0: none.

        Returns:
            The session as it is now.

        Raises:
            CheckpointNotFound, SessionNotFound, SessionDeleted, SessionQuarantined, ModelMismatch,
            RecordCorrupt, InvalidRequest, StoreFull: Nothing was changed.
            StoreUnavailable, AckLevelNotReached: It may have been put back; the same again is right.
        """
        Meant(incarnation=incarnation).check()
        check_nonce(nonce)
        epoch = self._store.epoch
        for _ in range(MAX_ATTEMPTS):
            session = await self._try_restore(key, name, incarnation, nonce)
            if session is not None:
                await confirm_one(self._store, key, self._ack_level, epoch)
                return session
        raise PositionConflict("other writers keep changing this session")

    async def _try_restore(self, key: bytes, name: str, incarnation: int, nonce: int) -> OpenSession | None:
        """Puts a session back, as `restore` does; None: another writer came first."""
        data, cursor = await load_one_with_cursor(self._store, key)
        stored = existing(decode_loaded(data))
        if nonce and stored.nonce == -nonce:  # by an earlier attempt
            return OpenSession(stored, served_model(self._models, stored), is_resumed=True, cursor=cursor)
        check_live(stored, incarnation)
        checkpoint = await self._store.load_checkpoint(key, name)
        if checkpoint is None:
            raise _not_there(name)
        model = served_model(self._models, checkpoint.record)
        record = checkpoint.record._replace(incarnation=draw_incarnation(), nonce=-nonce)
        found = await commit_one(
            self._store, key, stored.stamp, encode(record), self._ttl_s, checkpoint.cursor
        )
        self._engine.forget(key)
        if found is not None:
            return None
        self._on_event(SessionEvent.RESTORED)
        return OpenSession(record, model, is_resumed=True, cursor=checkpoint.cursor)


def _not_there(name: str) -> CheckpointNotFound:
    return CheckpointNotFound(f"the session has no checkpoint {name!r}", field="name")
