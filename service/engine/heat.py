"""Makes sessions hot of which records were read, and says what that means for the rows that wait. Pure.

Records that are laid out alike are taken together; what is odd about one is looked at by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError
from service.engine import rules
from service.engine.cache import Cache
from service.engine.checks import check_named, served_model
from service.engine.rows import Rows
from service.model.protocol import Model, Models
from service.store.protocol import Loaded
from service.store.record import KeptReply, Record, decode
from service.store.record_rows import RecordRows, decode_rows

ARRAYS_PAY = 10
"""Fewer records than this are decoded faster one by one."""


class Heated(NamedTuple):
    """What became of rows whose records were read.

    Attributes:
        rows: Those of sessions that are hot, to be decided again.
        answered: Each of the others, refused with an error, or else with a reply that is kept.
    """

    rows: Rows
    answered: Sequence[tuple[Rows, ServiceError | None]]


def heat_alike(
    cache: Cache, models: Models, keys: Sequence[bytes], records: Sequence[Loaded], verified_s: float
) -> dict[bytes, Loaded]:
    """Makes sessions hot that are stored alike, together; returns the other records, by key.

    Args:
        cache: Takes them.
        models: The models served.
        keys: Of the records.
        records: As they were read.
        verified_s: Monotonic time at which they were in the store.
    """
    found = dict(zip(keys, records, strict=True))
    for model, alike, places in read_alike(models, records):
        hot = [keys[place] for place in places.tolist()]
        cache.put_rows(hot, model, alike, verified_s=verified_s)
        for key in hot:
            del found[key]
    return found


def heat(
    cache: Cache, models: Models, rows: Rows, found: Mapping[bytes, Loaded], verified_s: float
) -> Heated:
    """Makes sessions of rows hot, one by one.

    Args:
        cache: Takes them.
        models: The models served.
        rows: Those who wait.
        found: Records, by key; a session that is not among them is hot.
        verified_s: Monotonic time at which they were in the store.
    """
    if not found:
        return Heated(rows, ())
    hot: list[int] = []
    answered: list[tuple[Rows, ServiceError | None]] = []
    for place, key in enumerate(rows.keys):
        try:
            meant = read(models, rows, place, found[key]) if key in found else None
        except ServiceError as error:
            cache.discard(key)
            answered.append((rows.one(place), error))
            continue
        if isinstance(meant, Rows):
            cache.discard(key)
            answered.append((meant, None))
            continue
        if meant is not None:
            cache.put(key, *meant, verified_s=verified_s)
        hot.append(place)
    return Heated(rows.anew(np.array(hot, np.int64)) if answered else rows, answered)


def read_alike(
    models: Models, records: Sequence[Loaded]
) -> list[tuple[Model, RecordRows, NDArray[np.int64]]]:
    """Decodes what most records are, live ones that are laid out alike, together.

    Args:
        models: The models served.
        records: As they were read.

    Returns:
        Model, records, and which they are, by index. What is not among them is for `read`.
    """
    alike: list[tuple[Model, RecordRows, NDArray[np.int64]]] = []
    if len(records) < ARRAYS_PAY:
        return alike
    for places, same in _by_size(records):
        if len(same) < ARRAYS_PAY or (decoded := decode_rows(same)) is None:
            continue
        rows, chosen = decoded
        model = models.find_fingerprint(rows.fingerprint)
        if model is not None and rows.states.shape[1] == model.contract.state_bytes:
            alike.append((model, rows, places[chosen]))
    return alike


def _by_size(records: Sequence[Loaded]) -> Iterator[tuple[NDArray[np.int64], Sequence[bytes]]]:
    """Yields records of one size, and which they are; mostly these are all, and then none is looked at."""
    if set(map(type, records)) == {bytes}:
        read = cast(Sequence[bytes], records)
        if len(set(map(len, read))) == 1:
            yield np.arange(len(read)), read
            return
    sizes = np.array([len(data) if isinstance(data, bytes) else -1 for data in records])
    for size in np.unique(sizes[sizes >= 0]).tolist():
        same = [data for data in records if isinstance(data, bytes) and len(data) == size]
        yield np.flatnonzero(sizes == size), same


def read(models: Models, rows: Rows, place: int, data: Loaded) -> tuple[Model, Record] | Rows:
    """Says what a record that was read means for the row that waits for it.

    Args:
        models: The models served.
        rows: See there.
        place: Index of the row.
        data: The record.

    Returns:
        Model and record of a live session, where it is to be decided further; or the row, with a reply that
        is kept, where the session is held.

    Raises:
        ServiceError: The row is refused.
    """
    if isinstance(data, ServiceError):
        raise data
    record = decode(data) if data is not None else None
    if record is not None and not record.deleted and not record.quarantine_reason:
        return served_model(models, record), record
    reply = rules.decide(record, rows.claim(place))
    assert record is not None, "bug: a session that is not stored runs"
    assert reply is not None, "bug: a session that is held runs"
    row = rows.one(place)
    row.model = served_model(models, record)
    check_named(row.model, row.asked.model_name, row.asked.model_version)
    fill_reply(row, record, reply)
    return row


def fill_reply(row: Rows, record: Record, reply: KeptReply) -> None:
    """Fills in a reply that is kept."""
    row.next_stamps = np.array([[record.incarnation, reply.position, reply.digest]])
    row.outputs = np.frombuffer(reply.outputs, np.uint8)[np.newaxis]
    row.is_replayed = True
