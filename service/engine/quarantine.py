"""Puts a session into quarantine: its record, as the chunk found it, gets a reason and another stamp.

The mark is in the store, so every replica knows of it, hot or not: whoever still expects the live stamp is
refused by the compare and finds the record with the reason. Release restores the live record to the byte,
and with it the stamp. A replica that has kept the session in memory all along is then right again: a stamp
is given to one state only, and quarantine changed neither state nor replies. A commit that was on its way
before the quarantine and arrives after the release was computed from this very state; it is applied once,
as if it had been slow. One that arrives in between is refused, and decided again on what is stored.
"""

from holdfast.errors import SessionQuarantined
from service.engine.rows import Rows
from service.engine.rules import quarantined
from service.store.protocol import StateStore, commit_one, load_one
from service.store.record import decode, encode


async def quarantine(store: StateStore, rows: Rows, reason: str, ttl_s: float) -> SessionQuarantined | None:
    """Marks the record of a session, unless it has moved on.

    Args:
        store: Where it is.
        rows: Its chunk that failed, one row.
        reason: What people should know.
        ttl_s: Time to live from now; 0 is for ever.

    Returns:
        The refusal of this and all further chunks; None if the session is not where this chunk belongs.

    Raises:
        RecordCorrupt, StoreFull, StoreUnavailable: As named.
    """
    [key], expected = rows.keys, rows.stamps.tobytes()
    data = await load_one(store, key)
    stored = decode(data) if data is not None else None
    if stored is None or stored.stamp != expected:
        return None
    held = stored._replace(quarantine_reason=reason)
    found = await commit_one(store, key, expected, encode(held), ttl_s)
    return None if found is not None else quarantined(held)
