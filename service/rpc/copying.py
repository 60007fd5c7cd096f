"""Builds the rpcs that copy, list and delete sessions, which have files of their own."""

from collections.abc import Awaitable, Callable
from typing import Any

from service.engine.changes import Changes
from service.engine.copies import Copies
from service.engine.deletions import Deletions
from service.engine.driver import Driver
from service.engine.listing import SessionList
from service.engine.report import SessionEvent
from service.model.protocol import Models
from service.rpc.copies import CopyRpcs
from service.rpc.lists import ListRpcs
from service.settings.schema import Settings
from service.store.protocol import AckLevel, StateStore


def copying_rpcs(
    models: Models,
    store: StateStore,
    engine: Driver,
    on_event: Callable[[SessionEvent], None],
    settings: Settings,
) -> dict[str, Callable[..., Awaitable[Any]]]:
    """Returns them by name.

    Args:
        models: The models served.
        store: Where sessions live.
        engine: Told of what changes behind its back.
        on_event: Told what happens to sessions.
        settings: Of the server.
    """
    ttl_s, max_rows = settings.session_ttl_s, settings.max_rows
    changes = Changes(store, engine, AckLevel.parse(settings.ack_level))
    copies = Copies(models, store, changes, ttl_s=ttl_s, on_event=on_event)
    sessions = SessionList(models, store, ttl_s=ttl_s)
    deletions = Deletions(store, changes, on_event=on_event)
    return {
        **CopyRpcs(copies, max_rows=max_rows).rpcs(),
        **ListRpcs(sessions, deletions, max_rows=max_rows).rpcs(),
    }
