"""Puts a session into quarantine: its record, as the chunk found it, gets a reason and another stamp.

The mark is in the store, so every replica knows of it, hot or not: whoever still expects the live stamp is
refused by the compare and finds the record with the reason. Release restores the live record to the byte,
and with it the stamp. A replica that has kept the session in memory all along is then right again: a stamp
is given to one state only, and quarantine changed neither state nor replies. A commit that was on its way
before the quarantine and arrives after the release was computed from this very state; it is applied once,
as if it had been slow. One that arrives in between is refused, and decided again on what is stored.
"""

import logging

from holdfast.errors import ServiceError, SessionQuarantined
from service.engine.effects import Quarantine
from service.engine.rules import quarantined
from service.store.protocol import StateStore, commit_one, load_one
from service.store.record import decode, encode

_log = logging.getLogger(__name__)


async def quarantine(store: StateStore, effect: Quarantine, ttl_s: float) -> SessionQuarantined | None:
    """Marks the record of a session, unless it has moved on.

    Args:
        store: Where it is.
        effect: Its chunk that failed, and how.
        ttl_s: Time to live from now; 0 is for ever.

    Returns:
        The refusal of this and all further chunks; None if the session is not where this chunk belongs, or
        cannot be marked, which is logged.
    """
    try:
        return await _mark(store, effect, ttl_s)
    except ServiceError as why:
        _log.warning("a session that fails again and again is not in quarantine: %s", why.message)
        return None


async def _mark(store: StateStore, effect: Quarantine, ttl_s: float) -> SessionQuarantined | None:
    [key], expected = effect.rows.keys, effect.rows.stamps.tobytes()
    data = await load_one(store, key)
    stored = decode(data) if data is not None else None
    if stored is None or stored.stamp != expected:
        return None
    held = stored._replace(quarantine_reason=effect.error.message)
    found = await commit_one(store, key, expected, encode(held), ttl_s)
    return None if found is not None else quarantined(held)
