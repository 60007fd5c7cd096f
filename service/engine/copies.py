"""Copies sessions: to other ids, out of the store as a blob, and back in from one.

A copy is a session of its own, in an incarnation of its own, that has consumed what its source had. It is
made as a session is opened: over nothing or a tombstone, with the nonce of the request in its record, by
which an attempt that comes again knows what it has made.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from holdfast.errors import (
    ServiceError,
    SessionDeleted,
    SessionExists,
)
from service.engine.changes import Changes, decode_loaded
from service.engine.checks import served_model
from service.engine.imported import check_imported
from service.engine.meant import Meant, check_nonce, live
from service.engine.report import SessionEvent
from service.model.protocol import Model, Models
from service.store.blob import Exported, encode_blob
from service.store.protocol import Loaded, StateStore, load_one_with_cursor
from service.store.record import Record, draw_incarnation


class Forked(NamedTuple):
    """A session that was copied.

    Attributes:
        record: What its copies begin at.
        model: The model that they run on.
        copies: What came of each: its record, or why it was not made.
    """

    record: Record
    model: Model
    copies: list[Record | ServiceError]


class Copies:
    """Makes copies of sessions.

    Args:
        models: The models served.
        store: Where sessions live.
        changes: Writes them there.
        ttl_s: Time to live of a copy; 0 is for ever.
        on_event: Told of copies that were made.
    """

    def __init__(
        self,
        models: Models,
        store: StateStore,
        changes: Changes,
        *,
        ttl_s: float,
        on_event: Callable[[SessionEvent], None] = lambda _: None,
    ) -> None:
        self._models = models
        self._store = store
        self._changes = changes
        self._ttl_s = ttl_s
        self._on_event = on_event

    async def fork(
        self,
        source: bytes,
        keys: Sequence[bytes],
        expected: Meant,
        nonce: int,
        admit: Callable[[int], None] = lambda _: None,
    ) -> Forked:
        """Copies a session, as it was last committed, in two round trips to the store, however many copies.

        An attempt that comes again goes on from the first copy that it has made before: the session may
        have moved on meanwhile, or be gone, and all copies are to be alike.

        Args:
            source: Key of the session's record.
            keys: Of the copies, distinct.
            expected: What the session must be.
            nonce: Random, the same in every attempt, 1 .. 2^53 - 1; 0: none.
            admit: Called with the bytes of all copies before they are made; may refuse.

        Raises:
            SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap,
            ModelMismatch,
            RecordCorrupt, InvalidRequest: The session cannot be copied; nothing was changed.
            StoreUnavailable: Copies may have been made or not; the same again is right.
        """
        expected.check()
        check_nonce(nonce)
        epoch = self._store.epoch
        [stored, *found] = await self._store.load([source, *keys])
        made_before = (
            _made_before(data, nonce) for key, data in zip(keys, found, strict=True) if key != source
        )
        record = next(filter(None, made_before), None) or live(decode_loaded(stored), expected, "position")
        record = record._replace(replies=())  # a retry belongs to the session, and not to its copies
        model = served_model(self._models, record)
        admit(len(keys) * len(record.state))

        def decide(key: bytes, stored: Record | None, _: bytes) -> Record:
            if key == source:
                raise SessionExists("a session cannot be copied to its own id", field="new_session_ids")
            return _new_or_made(stored, record, nonce)

        outcomes = await self._changes.make(dict(zip(keys, found, strict=True)), decide, self._ttl_s, epoch)
        copies = [outcomes[key] for key in keys]
        for copy in copies:
            if isinstance(copy, Record):
                self._on_event(SessionEvent.FORKED)
        return Forked(record, model, copies)

    async def export(self, key: bytes, expected: Meant) -> tuple[bytes, int]:
        """Returns a session, as it was last committed, as a blob, and its position.

        Raises:
            ServiceError: As `fork` does.
        """
        expected.check()
        data, cursor = await load_one_with_cursor(self._store, key)
        record = live(decode_loaded(data), expected, "position")
        model = served_model(self._models, record)
        return encode_blob(Exported(model.name, model.version, record, cursor)), record.position

    async def import_(self, key: bytes, exported: Exported, nonce: int) -> tuple[Record, Model, float]:
        """Stores an exported session, in an incarnation of its own, with its kept replies and its cursor.

        Args:
            key: Of its record.
            exported: What was in the blob.
            nonce: As of `fork`.

        Returns:
            What is stored, its model, and the seconds until it expires.

        Raises:
            ModelMismatch, StateNotFinite, InvalidRequest: It cannot be served here.
            SessionExists, SessionDeleted, RecordCorrupt, StoreFull: Of what is stored under this id.
            StoreUnavailable, AckLevelNotReached: It may have been stored; the same again is right.
        """
        check_nonce(nonce)
        model = check_imported(exported, self._models)
        epoch = self._store.epoch
        [data] = await self._store.load([key])

        def decide(_: bytes, stored: Record | None, __: bytes) -> Record:
            return _new_or_made(stored, exported.record, nonce)

        changes = self._changes.make({key: data}, decide, self._ttl_s, epoch, exported.cursor)
        outcome = (await changes)[key]
        if isinstance(outcome, ServiceError):
            raise outcome
        self._on_event(SessionEvent.IMPORTED)
        return outcome, model, await self._store.time_to_live_s(key)


def _made_before(data: Loaded, nonce: int) -> Record | None:
    """Returns a copy that an earlier attempt has made, if that is what is stored, as it was made."""
    if not nonce or not isinstance(data, bytes):
        return None
    try:
        stored = decode_loaded(data)
    except ServiceError:  # told where it is decided on
        return None
    if stored is None or stored.nonce != nonce or stored.deleted or stored.quarantine_reason:
        return None
    return None if stored.replies else stored  # one that was stepped since is no longer as it was made


def _new_or_made(stored: Record | None, like: Record, nonce: int) -> Record:
    """Returns the copy of a record to store where something may be stored: that, if an attempt has made it.

    Raises:
        SessionExists: The id is taken.
        SessionDeleted: The copy that an earlier attempt made was deleted.
    """
    if stored is not None and not stored.deleted:
        if nonce and stored.nonce == nonce:
            return stored
        raise SessionExists(
            f"the id is taken by a session at position {stored.position}",
            field="session_id",
            expected_position=stored.position,
        )
    if stored is not None and nonce and stored.nonce == nonce:
        raise SessionDeleted(f"what this request had made was deleted at position {stored.position}")
    return like._replace(incarnation=draw_incarnation(), nonce=nonce)
