"""Builds what serves each rpc of holdfast.v1."""

from collections.abc import Callable

from service.engine.changes import Changes
from service.engine.checkpoints import Checkpoints
from service.engine.copies import Copies
from service.engine.deletions import Deletions
from service.engine.driver import Driver
from service.engine.listing import SessionList
from service.engine.report import SessionEvent
from service.engine.sessions import Sessions
from service.model.reloading import ModelReloading
from service.model.repository import ModelRepository
from service.rpc.batches import BatchLimits
from service.rpc.checkpoints import CheckpointRpcs
from service.rpc.copies import CopyRpcs
from service.rpc.generation import Generations
from service.rpc.lists import ListRpcs
from service.rpc.models import ModelRpcs
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import Functions
from service.rpc.sessions import SessionRpcs
from service.rpc.steps import StepRpcs
from service.settings.schema import Settings
from service.store.protocol import AckLevel, StateStore


def build_functions(
    engine: Driver,
    store: StateStore,
    models: ModelRepository,
    sessions: Sessions,
    calls: OpenCalls,
    reloading: ModelReloading,
    on_event: Callable[[SessionEvent], None],
    settings: Settings,
) -> Functions:
    """Returns what serves the rpcs, but for WatchSession, whose tasks go on between calls.

    Args:
        engine: Applies chunks.
        store: Where sessions live.
        models: The models served.
        sessions: Opens, reads, deletes and releases sessions.
        calls: Knows the calls under way.
        reloading: Loads models that have come since.
        on_event: Told what happens to sessions.
        settings: Of the server.
    """
    ttl_s, level = settings.session_ttl_s, AckLevel.parse(settings.ack_level)
    max_tokens, max_rows = settings.max_chunk_tokens, settings.max_rows
    changes = Changes(store, engine, level)
    copies = Copies(models, store, changes, ttl_s=ttl_s, on_event=on_event)
    checkpoints = Checkpoints(
        models,
        store,
        engine,
        on_event=on_event,
        ttl_s=ttl_s,
        max_count=settings.max_checkpoints,
        ack_level=level,
    )
    session_list = SessionList(models, store, ttl_s=ttl_s)
    deletions = Deletions(store, changes, on_event=on_event)
    return {
        **SessionRpcs(sessions, max_rows=max_rows).rpcs(),
        **ListRpcs(session_list, deletions, max_rows=max_rows).rpcs(),
        **CopyRpcs(copies, max_rows=max_rows).rpcs(),
        **CheckpointRpcs(checkpoints, sessions).rpcs(),
        **StepRpcs(engine, calls, BatchLimits(models, max_tokens, max_rows)).rpcs(),
        **Generations(engine, sessions, models, calls, max_tokens).rpcs(),
        **ModelRpcs(models, reloading, max_chunk_tokens=max_tokens).rpcs(),
    }
