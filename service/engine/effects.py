"""What the core asks of the driver. Plain values.

The driver does what an effect says and reports it by the event of the same name, with the effect.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.errors import ModelFailed, ServiceError
from service.engine.rows import Rows
from service.store.flag import without_flag
from service.store.protocol import Found, Loaded, Refusals


@dataclass(slots=True, eq=False)
class Load:
    """Read records in one round trip: `loaded`, or `unread` where the store did not answer.

    Attributes:
        rows: Those who wait for them.
        keys: Of the records.
        attempt: How often they were read before, each time across a change of the server.
        commit: It is about this commit: what became of it is not known, and is read back.
        began_s: Monotonic time; set by the driver when it begins.
        epoch: Of the store, then.
    """

    rows: list[Rows]
    keys: list[bytes]
    attempt: int = 0
    commit: "Commit | None" = None
    began_s: float = field(init=False)
    epoch: int = field(init=False)


class Kind(enum.Enum):
    """How rows run.

    A BATCH runs while others wait for it. A SEARCH looks for a row at fault, beside further batches. BRIEF
    and LONG are of one row apart, in a thread: for a moment, or with all the time that a run may have.
    """

    BATCH = enum.auto()
    SEARCH = enum.auto()
    BRIEF = enum.auto()
    LONG = enum.auto()


@dataclass(slots=True, eq=False)
class Run:
    """Run rows: `ran`, with the failures.

    Attributes:
        groups: Rows of one model each, with their states; a group that fails fails by itself.
        kind: See there.
        in_thread: Not in the thread of the event loop, since the run may not end soon.
        is_aside: A batch that is not to be waited for longer than a moment.
        is_again: The rows have run before, with others.
    """

    groups: list[list[Rows]]
    kind: Kind = Kind.BATCH
    in_thread: bool = False
    is_aside: bool = False
    is_again: bool = False


class Failure(NamedTuple):
    """Why a group gave nothing.

    Attributes:
        error: See there.
        was_halted: It took too long; else it raised.
        cpu_s: What it took of a core.
        on_loop: It ran in the thread of the event loop.
    """

    error: ModelFailed
    was_halted: bool
    cpu_s: float
    on_loop: bool = False


@dataclass(slots=True, eq=False)
class Commit:
    """Offer records to the store: `committed`, or `lost` where the outcome is not known.

    Attributes:
        rows: They ran; their records, made by the driver when it begins, count through from 0.
        error: Why the outcome is not known; set when it is lost.
        began_s: Monotonic time; set by the driver when it begins.
        epoch: Of the store, then.
    """

    rows: list[Rows]
    error: ServiceError = field(init=False)
    began_s: float = field(init=False)
    epoch: int = field(init=False)


class Confirm(NamedTuple):
    """Wait until what is stored is as durable as the rows ask: `confirmed`.

    Attributes:
        rows: Committed or replayed.
        epoch: Of the store, when the records were written or read.
    """

    rows: Rows
    epoch: int


class Quarantine(NamedTuple):
    """Put the session of a row into quarantine: `quarantined`.

    Attributes:
        rows: One row, which has failed by itself once too often.
        error: How.
    """

    rows: Rows
    error: ServiceError


class Settle(NamedTuple):
    """Tell callers; nothing is reported.

    Attributes:
        rows: Committed or replayed, or else
        error: refused with this.
        is_applied: They are refused though they are committed, or were before.
    """

    rows: Rows
    error: ServiceError | None = None
    is_applied: bool = False


Effect = Load | Run | Commit | Confirm | Quarantine | Settle


def rows_of(effect: Effect) -> list[Rows]:
    """Returns the rows that an effect is about."""
    match effect:
        case Load(commit=Commit(rows=rows)) | Load(rows=rows) | Commit(rows=rows):
            return rows
        case Run(groups=groups):
            return [rows for group in groups for rows in group]
        case _:
            return [effect.rows]


def unproven(commit: Commit, records: Sequence[Loaded] | None, error: ServiceError) -> Refusals:
    """Says which records of a commit are not known to be stored, its outcome being unknown.

    A record that is found is a fact. One that is not may still arrive, from the buffer of the broken
    connection, so its caller is told to try again and the compare decides.

    Args:
        commit: See there.
        records: What was read back; None if nothing could be.
        error: For the callers.
    """
    sent = [bytes(record) for rows in commit.rows for record in rows.writes.records]
    found = [
        without_flag(data) if isinstance(data, bytes) else data for data in records or [None] * len(sent)
    ]
    return {
        number: error
        for number, (data, record) in enumerate(zip(found, sent, strict=True))
        if data != record
    }


def outcomes(
    commit: Commit, refusals: Refusals
) -> tuple[list[Rows], list[tuple[Rows, Found | ServiceError]]]:
    """Returns the rows of a commit that are stored, and each of those that are not with the reason."""
    stored, refused = [], []
    first = 0
    for rows in commit.rows:
        end = first + len(rows)
        reasons = {number - first: why for number, why in sorted(refusals.items()) if first <= number < end}
        if len(reasons) < len(rows):
            stored.append(rows.take(rows.others(reasons)) if reasons else rows)
        refused += [(rows.one(place), why) for place, why in reasons.items()]
        first = end
    return stored, refused
