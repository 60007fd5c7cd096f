"""Opens, reads, deletes and releases sessions: records that are loaded, changed and committed.

Nothing else opens a session, so what the engine finds missing is lost, deleted or expired, never new.
Chunks are the engine's. What is changed here is noticed there by the compare of its commits. What is
answered here is a promise like the answer to a chunk, so it waits for the server's acknowledgement level.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from holdfast.errors import (
    InvalidRequest,
    PositionConflict,
    RecordCorrupt,
    ServiceError,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
)
from holdfast.history_digest import initial_digest
from service.engine.changes import MAX_ATTEMPTS, Changes, decode_loaded
from service.engine.checks import check_named, served_model
from service.engine.driver import Driver
from service.engine.meant import check_nonce, existing
from service.engine.report import SessionEvent
from service.engine.rules import check_incarnation, quarantined
from service.model.protocol import Model, Models
from service.store.protocol import (
    AckLevel,
    Found,
    StateStore,
    commit_one,
    confirm_one,
    load_one,
    load_one_with_cursor,
)
from service.store.record import Record, decode, draw_incarnation, encode, new_record

SET_ASIDE_TTL_S = 30 * 86_400.0
"""How long a record that was discarded is kept for inspection."""


class Opening(NamedTuple):
    """What a caller asks of a session that is to be there.

    Attributes:
        model_name: "" only where the session exists.
        model_version: 0 is the newest, or any where the session exists.
        must_be_new: Refuse to resume.
        take_over: Give a session that is stored a new incarnation, and change nothing else of it.
        nonce: Random, the same in every attempt of one opening, 1 .. 2^53 - 1; 0: none.
        state: Gives the raw state to begin at, b"" for the model's own; not called where a session is
            resumed. May raise InvalidRequest.
    """

    model_name: str
    model_version: int = 0
    must_be_new: bool = False
    take_over: bool = False
    nonce: int = 0
    state: Callable[[Model], bytes] = lambda _: b""


class OpenSession(NamedTuple):
    """A live session.

    Attributes:
        record: What is stored.
        model: The model it runs on.
        is_resumed: It existed before, and not by an earlier attempt of this opening.
        cursor: Of the last chunk that had one; b"" if there is none.
    """

    record: Record
    model: Model
    is_resumed: bool
    cursor: bytes = b""


class Released(NamedTuple):
    """A session that is held no longer.

    Attributes:
        reason: Why it was held; "" if it was not, and is as it was.
        position: Of its record; 0 if that cannot be read.
    """

    reason: str
    position: int


class Sessions:
    """Opens, reads, deletes and releases sessions.

    Args:
        models: The models served.
        store: Where sessions live.
        engine: Told when a record changes behind its back.
        ttl_s: Time to live after a change; 0 is for ever.
        ack_level: How durable a change must be before it is answered.
        tombstone_ttl_s: How long a deleted session is remembered as deleted.
    """

    def __init__(
        self,
        models: Models,
        store: StateStore,
        engine: Driver,
        *,
        on_event: Callable[[SessionEvent], None] = lambda _: None,
        ttl_s: float,
        ack_level: AckLevel = AckLevel.MEMORY,
        tombstone_ttl_s: float = 3600.0,
    ) -> None:
        self._models = models
        self._store = store
        self._engine = engine
        self._changes = Changes(store, engine, ack_level)
        self._on_event = on_event
        self._ttl_s = ttl_s
        self._ack_level = ack_level
        self._tombstone_ttl_s = tombstone_ttl_s

    async def open(self, key: bytes, opening: Opening) -> OpenSession:
        """Opens a session, or resumes the one that is stored.

        Args:
            key: Of its record.
            opening: What is asked.

        Raises:
            SessionExists, SessionNotFound, SessionDeleted, SessionQuarantined, ModelNotFound,
            ModelMismatch, RecordCorrupt, InvalidRequest, StoreFull: Nothing was changed.
            StoreUnavailable, AckLevelNotReached: It may have been; the same again is right.
        """
        [outcome] = await self.open_batch([key], opening)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def open_batch(
        self, keys: Sequence[bytes], opening: Opening, states: Sequence[Callable[[Model], bytes]] = ()
    ) -> list[OpenSession | ServiceError]:
        """Opens or resumes many sessions, each by itself, in two round trips to the store.

        Args:
            keys: Of their records, distinct.
            opening: What is asked of each.
            states: `Opening.state` of each; none if that of the opening is for all.

        Returns:
            What came of each; errors as `open` raises them.

        Raises:
            InvalidRequest, StoreUnavailable: As `open` does, for all of them.
        """
        check_nonce(opening.nonce)
        epoch = self._store.epoch
        openings = dict.fromkeys(keys, opening)
        if states:
            openings = {key: opening._replace(state=state) for key, state in zip(keys, states, strict=True)}
        sessions: dict[bytes, OpenSession] = {}

        def decide(key: bytes, stored: Record | None, cursor: bytes) -> Record:
            sessions[key] = session = self._opened(stored, openings[key], cursor)
            return session.record

        found = dict(zip(keys, await self._store.load(keys), strict=True))
        outcomes = await self._changes.make(found, decide, self._ttl_s, epoch, reads_cursors=True)
        opened = [
            outcome if isinstance(outcome, ServiceError) else sessions[key]
            for key, outcome in outcomes.items()
        ]
        for session in opened:
            if isinstance(session, OpenSession):
                self._on_event(_event_of(session, opening))
        return opened

    def _opened(self, stored: Record | None, opening: Opening, cursor: bytes) -> OpenSession:
        """Returns the session as it is to be stored; the very record if it is that already."""
        if stored is None:
            return self._new(opening)
        is_repeated = opening.nonce != 0 and abs(stored.nonce) == opening.nonce
        if stored.deleted:
            if is_repeated:
                raise SessionDeleted(
                    f"the session of this opening was deleted at position {stored.position}"
                )
            return self._new(opening)
        session = self._resume(stored, opening, was_made=is_repeated and stored.nonce > 0)
        session = session._replace(cursor=cursor)
        if opening.take_over and not is_repeated:
            taken = stored._replace(incarnation=draw_incarnation(), nonce=-opening.nonce)
            session = session._replace(record=taken)
        return session

    async def read(self, key: bytes) -> OpenSession:
        """Returns a live session, or one in quarantine.

        Raises:
            SessionNotFound, SessionDeleted, ModelMismatch, RecordCorrupt, StoreUnavailable: As named.
        """
        data, cursor = await load_one_with_cursor(self._store, key)
        record = existing(decode_loaded(data))
        return OpenSession(record, served_model(self._models, record), is_resumed=True, cursor=cursor)

    async def delete(self, key: bytes, incarnation: int) -> int:
        """Replaces a session by a tombstone.

        Args:
            key: Of its record.
            incarnation: The one to delete; 0 is any.

        Returns:
            Its position at the end. A session deleted before gives the same answer again.

        Raises:
            SessionNotFound, SessionDeleted, RecordCorrupt, StoreUnavailable, AckLevelNotReached: As named.
        """
        epoch = self._store.epoch
        data = await load_one(self._store, key)
        for _ in range(MAX_ATTEMPTS):
            if data is None:
                raise SessionNotFound("no session has this id", field="session_id")
            stored = decode(data)
            check_incarnation(stored, incarnation)
            if stored.deleted:
                await self._confirm(key, epoch)
                return stored.position
            tombstone = stored.tombstone
            found = await self._replace(key, stored.stamp, tombstone, self._tombstone_ttl_s)
            if found is None:
                self._on_event(SessionEvent.DELETED)
                await self._confirm(key, epoch)
                return stored.position
            data = found.record
        raise PositionConflict("other writers keep changing this session")

    async def release(self, key: bytes, *, discard: bool) -> Released:
        """Lets a session go on that is in quarantine, from where it stands; or frees the id of one held.

        Args:
            key: Of its record.
            discard: Move the record aside, be it in quarantine or damaged; the id is free then.

        Raises:
            SessionNotFound: Nothing is stored.
            RecordCorrupt: It is damaged, and `discard` is not given; it is left as found.
            PositionConflict, StoreUnavailable, StoreFull, AckLevelNotReached: As named.
        """
        for _ in range(MAX_ATTEMPTS):
            epoch = self._store.epoch
            data = await load_one(self._store, key)
            if data is None:
                return await self._release_foreign(key, discard)
            held, record = self._why_held(data, discard)
            if not held.reason:
                return held
            if discard or record is None:
                if await self._store.set_aside(key, data, SET_ASIDE_TTL_S):
                    self._engine.forget(key)
                    self._on_event(SessionEvent.RELEASED)
                    await self._confirm(key, epoch)
                    return held
            elif not await self._replace(
                key, record.stamp, record._replace(quarantine_reason=""), self._ttl_s
            ):
                self._on_event(SessionEvent.RELEASED)
                await self._confirm(key, epoch)
                return held
        raise PositionConflict("other writers keep changing this session")

    async def _release_foreign(self, key: bytes, discard: bool) -> Released:
        """Moves aside a value that is no record, being no string; the store gives it as nothing."""
        if discard and await self._store.set_aside(key, b"", SET_ASIDE_TTL_S):
            self._on_event(SessionEvent.RELEASED)
            return Released("the key of the session held something that is not a record", 0)
        raise SessionNotFound("no session has this id", field="session_id")

    def _why_held(self, data: bytes, discard: bool) -> tuple[Released, Record | None]:
        """Returns why a record is held, and the record; None if it is damaged and may be moved aside."""
        position = 0
        try:
            record = decode(data)
            position = record.position
            if record.quarantine_reason or record.deleted:
                return Released(record.quarantine_reason, position), record
            if self._models.find_fingerprint(record.fingerprint) is not None:
                served_model(self._models, record)
        except RecordCorrupt as error:
            if not discard:
                raise
            return Released(error.message, position), None
        return Released("", position), record

    async def expires_in_s(self, key: bytes) -> float:
        """Returns the seconds until a session expires; 0 is never."""
        return await self._store.time_to_live_s(key)

    async def _replace(self, key: bytes, expected: bytes, record: Record, ttl_s: float) -> Found | None:
        """Commits one record; what is found instead is returned, what fails is raised."""
        found = await commit_one(self._store, key, expected, encode(record), ttl_s)
        self._engine.forget(key)
        return found

    async def _confirm(self, key: bytes, epoch: int) -> None:
        """Waits until what is stored is as durable as this server promises."""
        await confirm_one(self._store, key, self._ack_level, epoch)

    def _new(self, opening: Opening) -> OpenSession:
        if not opening.model_name:
            raise SessionNotFound("no session has this id; name a model to open it", field="model")
        model = self._models.find(opening.model_name, opening.model_version)
        state = opening.state(model)
        if not state and (required := model.contract.required_at_opening):
            raise InvalidRequest(
                f"the model needs {', '.join(required)} when a session is opened", field="initial_state"
            )
        record = new_record(
            model.fingerprint,
            state or model.contract.initial_state,
            digest=initial_digest(state),
            nonce=opening.nonce,
        )
        return OpenSession(record, model, is_resumed=False)

    def _resume(self, record: Record, opening: Opening, *, was_made: bool) -> OpenSession:
        """Returns a session that is stored; `was_made`: by an earlier attempt of this very opening."""
        if opening.must_be_new and not was_made:
            raise SessionExists(
                f"the id is taken by a session at position {record.position}",
                field="session_id",
                expected_position=record.position,
            )
        if record.quarantine_reason:
            raise quarantined(record)
        model = served_model(self._models, record)
        check_named(model, opening.model_name, opening.model_version)
        return OpenSession(record, model, is_resumed=not was_made)


def _event_of(session: OpenSession, opening: Opening) -> SessionEvent:
    if not session.is_resumed:
        return SessionEvent.OPENED
    return SessionEvent.TAKEN_OVER if opening.take_over else SessionEvent.RESUMED


def new_session_id() -> str:
    """Returns an id that nobody can guess, 128 random bits."""
    return secrets.token_hex(16)
