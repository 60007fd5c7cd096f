"""Changes records of sessions that no chunk changes: decides on what is stored, commits, confirms.

Another writer may come first. Then what it wrote is looked at anew, by the same rule.
"""

from collections.abc import Callable, Mapping, Sequence

from holdfast.errors import PositionConflict, ServiceError
from service.engine.driver import Driver
from service.store.protocol import AckLevel, Found, Loaded, StateStore, Writes, load_cursors
from service.store.record import NO_STAMP, Record, decode, encode

MAX_ATTEMPTS = 16
"""Attempts against other writers of the same record."""

Decide = Callable[[bytes, Record | None, bytes], Record]
"""Gets a key, what is stored there, and the session's cursor if cursors are read; returns what is to be
stored, the very record if it is that already. Raises a ServiceError to leave a record alone."""

Outcomes = dict[bytes, Record | ServiceError]
"""By key: what is stored now, or why nothing was changed."""


class Changes:
    """Changes records.

    Args:
        store: Where they are.
        engine: Told of what changes behind its back.
        ack_level: How durable a change must be before it is answered.
    """

    def __init__(self, store: StateStore, engine: Driver, ack_level: AckLevel) -> None:
        self._store = store
        self._engine = engine
        self._ack_level = ack_level

    async def make(
        self,
        found: Mapping[bytes, Loaded],
        decide: Decide,
        ttl_s: float,
        epoch: int,
        cursor: bytes = b"",
        *,
        reads_cursors: bool = False,
    ) -> Outcomes:
        """Changes records, each by itself; in one round trip, if nobody comes first.

        Args:
            found: What was loaded, by key.
            decide: What is to be stored.
            ttl_s: Time to live of what is written; 0 is for ever.
            epoch: The store's, as it was before that was loaded.
            cursor: Stored with what is written; b"" leaves what there is, none beside what is new.
            reads_cursors: Decide on records and cursors as they are read together; else cursors are b"".

        Raises:
            StoreUnavailable: Records may have been written or not; to do the same again is right.
        """
        outcomes: Outcomes = {}
        left = dict(found)
        for _ in range(MAX_ATTEMPTS):
            read = {key: (data, b"") for key, data in left.items()}
            if reads_cursors:
                read = await load_cursors(self._store, left)
            changed = _decided(read, decide, outcomes)
            left = await self._commit(changed, ttl_s, cursor, outcomes) if changed else {}
            if not left:
                break
        for key in left:
            outcomes[key] = PositionConflict("other writers keep changing this session")
        await self._confirm(outcomes, epoch)
        return {key: outcomes[key] for key in found}

    async def _commit(
        self, changed: Sequence[tuple[bytes, bytes, bytes]], ttl_s: float, cursor: bytes, outcomes: Outcomes
    ) -> dict[bytes, Loaded]:
        """Commits records: key, expected stamp, encoded record; returns what is found instead."""
        keys, stamps, records = zip(*changed, strict=True)
        cursors = [cursor] * len(keys) if cursor else None
        refusals = await self._store.commit([Writes(keys, b"".join(stamps), records, cursors)], ttl_s)
        again: dict[bytes, Loaded] = {}
        for number, key in enumerate(keys):
            self._engine.forget(key)
            refusal = refusals.get(number)
            if isinstance(refusal, Found):
                again[key] = refusal.record
            elif refusal is not None:
                outcomes[key] = refusal
        return again

    async def _confirm(self, outcomes: Outcomes, epoch: int) -> None:
        """Waits until what is stored is as durable as this server promises."""
        keys: Sequence[bytes] = [key for key, outcome in outcomes.items() if isinstance(outcome, Record)]
        if not (self._ack_level and keys):
            return
        for number, refusal in (await self._store.confirm(keys, self._ack_level, epoch)).items():
            assert isinstance(refusal, ServiceError), "bug: a confirmation found another record"
            outcomes[keys[number]] = refusal


def _decided(
    read: Mapping[bytes, tuple[Loaded, bytes]], decide: Decide, outcomes: Outcomes
) -> list[tuple[bytes, bytes, bytes]]:
    """Decides on each record, read with a cursor; returns those to commit, as `_commit` takes them."""
    changed: list[tuple[bytes, bytes, bytes]] = []
    for key, (data, cursor) in read.items():
        try:
            stored = decode_loaded(data)
            outcomes[key] = record = decide(key, stored, cursor)
        except ServiceError as error:
            outcomes[key] = error.without_trace()
            continue
        if record is not stored:
            changed.append((key, stored.stamp if stored is not None else NO_STAMP, encode(record)))
    return changed


def decode_loaded(data: Loaded) -> Record | None:
    """Returns the record that was loaded; None if nothing is stored.

    Raises:
        ServiceError: It could not be read, or is damaged.
    """
    if isinstance(data, ServiceError):
        raise data
    return decode(data) if data is not None else None
