"""What the engine needs of a store.

Implementations: `store.Store`, and fakes in the tests.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError
from service.store.beside import Checkpoint, CheckpointHead
from service.store.flag import has_sibling
from service.store.head import Head
from service.store.safety import StoreUsage


class AckLevel(enum.IntFlag):
    """How durable a commit is when its reply leaves. `MEMORY`: the primary has it."""

    MEMORY = 0
    FSYNCED = 1
    REPLICATED = 2

    @classmethod
    def parse(cls, text: str) -> "AckLevel":
        """Reads `memory`, `fsynced`, `replicated` or `fsynced+replicated`.

        Raises:
            KeyError: Another word.
        """
        level = cls.MEMORY
        for name in text.split("+"):
            level |= cls[name.upper()]
        return level

    def __str__(self) -> str:
        return "+".join(str(part.name).lower() for part in self) or "memory"


ACK_LEVELS = tuple(AckLevel(number) for number in range(4))
"""Every level, the combination of both included."""


class Writes(NamedTuple):
    """Records to commit, of B distinct sessions.

    Attributes:
        keys: Where.
        expected: Stamps that the stored records must have, one after the other, 24 bytes each;
            `record.NO_STAMP` where none may be stored.
        records: The new records, encoded: one by one, or (B, size) where all have one size.
        cursors: Of the sessions, stored with the records; None leaves what is stored, b"" takes it away.
            None if all are to be left.
    """

    keys: Sequence[bytes]
    expected: bytes
    records: Sequence[bytes] | NDArray[np.uint8]
    cursors: Sequence[bytes | None] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the records."""
        return self.records.size if isinstance(self.records, np.ndarray) else sum(map(len, self.records))


Loaded = bytes | None | ServiceError
"""A record as it was read: encoded, nothing, or why it could not be read where others could."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record was not written because another one is stored.

    Attributes:
        record: What is stored instead, encoded; None if nothing is.
    """

    record: bytes | None


Refusals = dict[int, Found | ServiceError]
"""Why records were not written, by their number in the call; nothing was changed for them, except that
one with StoreUnavailable may have been written: a cluster loses the replies of one node and not of the
others."""


class ScanPlace(NamedTuple):
    """How far a list of all keys has come.

    Attributes:
        layout: Names the servers that hold the keys, and says which has what; 8 bytes. A place is one of
            this layout only.
        node: Number of the server, in the order of the layout.
        cursor: Where its list goes on.
    """

    layout: bytes
    node: int = 0
    cursor: int = 0


class KeyedHead(NamedTuple):
    """A record of which no more than its head was read.

    Attributes:
        key: Where it lies.
        head: What it says.
        expires_in_s: Seconds until it expires; 0 is never.
        idle_s: Seconds since the store last read or wrote it; None if it was not asked.
    """

    key: bytes
    head: Head
    expires_in_s: float
    idle_s: float | None


class UnsafeStore(Exception):
    """The store could drop sessions without a word; the message says why and what to set.

    Attributes:
        usage: What it uses meanwhile.
    """

    def __init__(self, message: str, usage: StoreUsage) -> None:
        super().__init__(message)
        self.usage = usage


class StateStore(Protocol):
    """Keeps one record per key and replaces it atomically."""

    async def load(self, keys: Sequence[bytes]) -> Sequence[Loaded]:
        """Reads records in one round trip; None where nothing is stored.

        A cluster can read some and not others; the latter are StoreUnavailable in the list.

        Raises:
            StoreUnavailable: No answer in time; none was read.
        """
        ...

    async def load_with_cursors(self, keys: Sequence[bytes]) -> Sequence[tuple[Loaded, bytes]]:
        """Reads records as `load` does, each in one atomic act with the session's cursor, or b"".

        For records that may have a sibling, see `flag.has_sibling`: it costs more than `load`.

        Raises:
            StoreUnavailable: No answer in time; none was read.
        """
        ...

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        """Replaces each record that has the expected stamp, in one round trip.

        Check, write, cursor and new expiry of a key are one atomic act: of two replicas on one session one
        wins. The records of a call are independent. What lies beside a record lives as long as it, and
        goes when a tombstone comes, or the record of a session that is new.

        Args:
            writes: Distinct keys; the records count through from 0.
            ttl_s: Time to live from now, by the store's clock; 0 is for ever.

        Returns:
            The records that were not written; all others are committed.

        Raises:
            StoreUnavailable: No answer in time; each record may or may not have been written.
        """
        ...

    @property
    def epoch(self) -> int:
        """Changes whenever the server behind the connection may be another one: at every reconnect."""
        ...

    def check_level(self, level: AckLevel) -> None:
        """Makes sure that the store is set up to give a level.

        Raises:
            AckLevelUnsupported: It is not; the message says why.
        """
        ...

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        """Waits until what the store holds under the keys is as durable as the level says.

        Args:
            keys: Of records that were read or committed.
            level: Above MEMORY.
            epoch: As it was before they were read or committed.

        Returns:
            AckLevelNotReached by number of the key, where they did not become so in time, or where the
            epoch has passed, so that the server that had them may be gone.
        """
        ...

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        """Moves a record to `keys.set_aside_key`, over an older one there, if it is still the given one.

        Check, move and expiry are one atomic act, and what lies beside the record is deleted in it.

        Args:
            key: Of the record.
            record: The bytes found there; b"" where `load` gives None, for a value of another kind.
            ttl_s: How long it is kept there.

        Returns:
            Whether it was moved; if not, another record is stored by now, or none.

        Raises:
            StoreUnavailable: No answer in time; it may or may not have been moved.
        """
        ...

    async def save_checkpoint(
        self, key: bytes, stamp: bytes, name: str, max_count: int
    ) -> CheckpointHead | Found | None:
        """Keeps a record, and its session's cursor, under a name beside it, as long as the record.

        Check and write are one atomic act. One of that name is replaced. The record keeps its stamp.

        Args:
            key: Of the record.
            stamp: That it must have.
            name: Of the checkpoint.
            max_count: Most checkpoints that a session may have.

        Returns:
            The checkpoint; or what is stored instead; None: there are as many of other names.

        Raises:
            StoreUnavailable: No answer in time; it may or may not have been saved.
            StoreFull, RecordCorrupt: As named; nothing was changed.
        """
        ...

    async def list_checkpoints(self, key: bytes) -> list[CheckpointHead]:
        """Returns the checkpoints beside a record, in no particular order.

        Raises:
            StoreUnavailable, RecordCorrupt: As named.
        """
        ...

    async def load_checkpoint(self, key: bytes, name: str) -> Checkpoint | None:
        """Reads a checkpoint; None if there is none of that name.

        Raises:
            StoreUnavailable, RecordCorrupt: As named.
        """
        ...

    async def delete_checkpoint(self, key: bytes, name: str) -> bool:
        """Deletes a checkpoint; returns whether there was one of that name.

        Raises:
            StoreUnavailable: No answer in time; it may or may not have been deleted.
        """
        ...

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; 0 if it never does.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    def first_place(self) -> ScanPlace:
        """Returns where a list of all keys begins.

        Raises:
            StoreUnavailable: There is no connection.
        """
        ...

    async def scan(
        self, pattern: bytes, place: ScanPlace, count: int
    ) -> tuple[Sequence[bytes], ScanPlace | None]:
        """Looks through about `count` keys, and holds the store up no longer than that takes.

        Args:
            pattern: Of keys, as `keys.session_pattern` gives it.
            place: Where to go on, of the layout that `first_place` has now.
            count: See there.

        Returns:
            Keys of strings that match, and where to go on; None at the end. A key that is there from the
            first place to the end is returned, perhaps twice.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    async def heads(self, keys: Sequence[bytes], *, with_idle: bool) -> Sequence[KeyedHead]:
        """Reads the heads of records in one round trip; those that are not of live sessions are left out.

        Args:
            keys: Of the records.
            with_idle: Ask for how long they were idle. Where the server allows it, reading heads does not
                count as use.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    async def quarantine_reason(self, key: bytes, start: int) -> str:
        """Returns the reason that stands in a record from some byte on; see `Head.reason_start`.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    @property
    def is_available(self) -> bool:
        """Whether the store answered when last asked."""
        ...


async def load_one(store: StateStore, key: bytes) -> bytes | None:
    """Reads one record; None if nothing is stored.

    Raises:
        StoreUnavailable: No answer in time.
    """
    [data] = await store.load((key,))
    assert not isinstance(data, ServiceError), "bug: what cannot be read alone is raised"
    return data


async def load_cursors(
    store: StateStore, found: Mapping[bytes, Loaded]
) -> dict[bytes, tuple[Loaded, bytes]]:
    """Returns records with the cursors of their sessions; b"" if there is none.

    Args:
        store: Where they are.
        found: Records that were read, by key. Those that may have a sibling are read again, together.

    Raises:
        StoreUnavailable: No answer in time.
    """
    read: dict[bytes, tuple[Loaded, bytes]] = {key: (data, b"") for key, data in found.items()}
    keys = [key for key, data in found.items() if isinstance(data, bytes) and has_sibling(data)]
    if keys:
        read.update(zip(keys, await store.load_with_cursors(keys), strict=True))
    return read


async def load_one_with_cursor(store: StateStore, key: bytes) -> tuple[bytes | None, bytes]:
    """Reads one record and the cursor of its session; see `load_one` and `load_cursors`."""
    read = await load_cursors(store, {key: await load_one(store, key)})
    data, cursor = read[key]
    if isinstance(data, ServiceError):
        raise data
    return data, cursor


async def confirm_one(store: StateStore, key: bytes, level: AckLevel, epoch: int) -> None:
    """Waits until what is stored under a key is as durable as the level says; arguments as of `confirm`.

    Raises:
        AckLevelNotReached: It is not, in time.
    """
    if level:
        refusal = (await store.confirm((key,), level, epoch)).get(0)
        if isinstance(refusal, ServiceError):
            raise refusal


async def commit_one(
    store: StateStore, key: bytes, expected: bytes, record: bytes, ttl_s: float, cursor: bytes | None = None
) -> Found | None:
    """Replaces one record; arguments as in `Writes` and `StateStore.commit`.

    Returns:
        What is stored instead, if the record was not written.

    Raises:
        ServiceError: Why it failed.
    """
    cursors = None if cursor is None else (cursor,)
    refusal = (await store.commit([Writes((key,), expected, (record,), cursors)], ttl_s)).get(0)
    if isinstance(refusal, ServiceError):
        raise refusal
    return refusal
