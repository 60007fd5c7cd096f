"""Lists the sessions of a tenant, page by page, out of a store that has those of all tenants.

The store is looked through a few keys at a time, so that no commit waits for a list, and a page looks
through a bounded number of them: one of which little matches may be empty, and not be the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

from service.model.protocol import Model, Models
from service.store.keys import session_id_of, session_key, session_pattern
from service.store.protocol import KeyedHead, ScanPlace, StateStore

SCAN_COUNT = 256
"""Keys that the store looks through at a time: some tens of microseconds, in which it does nothing else."""

MAX_SCANS = 64
"""Such looks for one page."""

MOST_LEFT = 16
"""So many ids more than a page has room for are kept for the next one, about."""


class Wanted(NamedTuple):
    """Which sessions to list.

    Attributes:
        tenant: Whose.
        prefix: Their ids begin with this.
        model_name: The model that they run on; "" is any.
        model_version: Its version; 0 is any.
        min_idle_s: So long they have had no commit.
    """

    tenant: str
    prefix: str = ""
    model_name: str = ""
    model_version: int = 0
    min_idle_s: float = 0.0


class PagePlace(NamedTuple):
    """Where a page begins.

    Attributes:
        place: Where the store is to be looked through further; None at its end.
        found: Ids that were found before and did not fit into the page before.
    """

    place: ScanPlace | None
    found: Sequence[str] = ()


class Listed(NamedTuple):
    """A session of a list.

    Attributes:
        session_id: Its id.
        stored: Head of its record.
        model: What it runs on; None if that is not served here.
        idle_s: Seconds since its last commit; None if the store does not say.
        quarantine_reason: "" if it is in none.
    """

    session_id: str
    stored: KeyedHead
    model: Model | None
    idle_s: float | None
    quarantine_reason: str


class SessionList:
    """Lists sessions.

    Args:
        models: The models served.
        store: Where sessions live.
        ttl_s: Their time to live after a commit; 0 is for ever.
    """

    def __init__(self, models: Models, store: StateStore, *, ttl_s: float) -> None:
        self._models = models
        self._store = store
        self._ttl_s = ttl_s

    def beginning(self) -> PagePlace:
        """Returns where a list begins.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        return PagePlace(self._store.first_place())

    async def page(
        self, wanted: Wanted, begin: PagePlace, size: int
    ) -> tuple[list[Listed], PagePlace | None]:
        """Returns a page, and where the next one begins; None after the last.

        Args:
            wanted: What to list.
            begin: Of the layout that `beginning` has now.
            size: Most sessions of the page, >= 1.

        Raises:
            ModelNotFound: No model of that name and version is served here.
            StoreUnavailable: No answer in time.
        """
        if wanted.model_name:
            self._models.find(wanted.model_name, wanted.model_version)
        pattern = session_pattern(wanted.tenant, wanted.prefix)
        listed: dict[str, Listed] = {}
        place, found = begin.place, list(begin.found)
        for _ in range(MAX_SCANS):
            room = size - len(listed)
            if not found and place is not None:
                found, place = await self._scan(pattern, place, room)
            taken, found = found[:room], found[room:]
            for one in await self._read(wanted.tenant, taken):
                if _is_wanted(one, wanted):
                    listed[one.session_id] = one
            if len(listed) == size or (place is None and not found):
                break
        is_last = place is None and not found
        return list(listed.values()), None if is_last else PagePlace(place, found)

    async def _scan(
        self, pattern: bytes, place: ScanPlace, room: int
    ) -> tuple[list[str], ScanPlace | None]:
        """Looks through some keys; through fewer where many more are found than there is room for."""
        keys, following = await self._store.scan(pattern, place, SCAN_COUNT)
        if len(keys) > room + MOST_LEFT:
            keys, following = await self._store.scan(pattern, place, max(room, MOST_LEFT))
        return list(dict.fromkeys(map(session_id_of, keys))), following

    async def _read(self, tenant: str, session_ids: Sequence[str]) -> list[Listed]:
        """Reads what there is to tell of sessions; those that are gone are left out."""
        if not session_ids:
            return []
        keys = [session_key(tenant, session_id) for session_id in session_ids]
        listed = []
        for stored in await self._store.heads(keys, with_idle=not self._ttl_s):
            head = stored.head
            reason = ""
            if head.reason_start:
                reason = await self._store.quarantine_reason(stored.key, head.reason_start) or "not known"
            model = self._models.find_fingerprint(head.fingerprint)
            listed.append(Listed(session_id_of(stored.key), stored, model, self._idle_s(stored), reason))
        return listed

    def _idle_s(self, stored: KeyedHead) -> float | None:
        """Returns the time since the last commit: each of them sets the time to live anew."""
        if self._ttl_s and stored.expires_in_s:
            return max(0.0, self._ttl_s - stored.expires_in_s)
        return stored.idle_s


def _is_wanted(one: Listed, wanted: Wanted) -> bool:
    if wanted.model_name:
        if one.model is None or one.model.name != wanted.model_name:
            return False
        if wanted.model_version not in (0, one.model.version):
            return False
    return not wanted.min_idle_s or (one.idle_s is not None and one.idle_s >= wanted.min_idle_s)
