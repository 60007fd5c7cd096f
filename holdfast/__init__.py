"""The client of Holdfast, the streaming inference service for recurrent networks.

with holdfast.Client("localhost:50051") as client:
    session = client.open_session("user-42", model="python-source")
    reply = session.step("import num", top_k=3)

A name is loaded when it is first used: whoever imports `holdfast.errors` alone needs no gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from holdfast.client import forks as _forks  # noqa: F401 -- notices forks before the first client, too

if TYPE_CHECKING:
    from holdfast import errors as errors
    from holdfast.client.aio import AsyncClient as AsyncClient
    from holdfast.client.batch_reply import BatchReply as BatchReply
    from holdfast.client.batching import BatchPipeline as BatchPipeline
    from holdfast.client.deleted_batch import DeletedBatch as DeletedBatch
    from holdfast.client.generated import GeneratedToken as GeneratedToken
    from holdfast.client.labels import labels_of as labels_of
    from holdfast.client.opened_batch import OpenedBatch as OpenedBatch
    from holdfast.client.reply import StepReply as StepReply
    from holdfast.client.retry import RetryPolicy as RetryPolicy
    from holdfast.client.session import AsyncSession as AsyncSession
    from holdfast.client.sync import Client as Client
    from holdfast.client.sync_session import Session as Session
    from holdfast.client.tls import Tls as Tls
    from holdfast.client.watching import WatchedChunk as WatchedChunk
    from holdfast.errors import HoldfastError as HoldfastError
    from holdfast.pending import PendingChunk as PendingChunk

    __version__: str
else:
    _HOMES = {
        "AsyncClient": "holdfast.client.aio",
        "AsyncSession": "holdfast.client.session",
        "BatchPipeline": "holdfast.client.batching",
        "BatchReply": "holdfast.client.batching",
        "Client": "holdfast.client.sync",
        "DeletedBatch": "holdfast.client.deleted_batch",
        "GeneratedToken": "holdfast.client.generated",
        "HoldfastError": "holdfast.errors",
        "OpenedBatch": "holdfast.client.opened_batch",
        "PendingChunk": "holdfast.pending",
        "RetryPolicy": "holdfast.client.retry",
        "Session": "holdfast.client.sync_session",
        "StepReply": "holdfast.client.reply",
        "Tls": "holdfast.client.tls",
        "WatchedChunk": "holdfast.client.watching",
        "labels_of": "holdfast.client.labels",
    }

    def __getattr__(name):
        if name in _HOMES:
            found = getattr(import_module(_HOMES[name]), name)
        elif name == "__version__":
            found = import_module("importlib.metadata").version("holdfast")
        else:
            raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *_HOMES, "__version__"})


__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BatchPipeline",
    "BatchReply",
    "Client",
    "DeletedBatch",
    "GeneratedToken",
    "HoldfastError",
    "OpenedBatch",
    "PendingChunk",
    "RetryPolicy",
    "Session",
    "StepReply",
    "Tls",
    "WatchedChunk",
    "__version__",
    "labels_of",
]
