"""The client of Holdfast, the streaming inference service for recurrent networks.

with holdfast.Client("localhost:50051") as client:
    session = client.open_session("user-42", model="python-source")
    reply = session.step("import num", top_k=3)
"""

from importlib.metadata import version

from holdfast.client.aio import AsyncClient
from holdfast.client.batching import BatchPipeline, BatchReply
from holdfast.client.labels import labels_of
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.reply import StepReply
from holdfast.client.retry import RetryPolicy
from holdfast.client.session import AsyncSession
from holdfast.client.sync import Client
from holdfast.client.sync_session import Session
from holdfast.client.tls import Tls
from holdfast.errors import HoldfastError
from holdfast.pending import PendingChunk

__version__ = version("holdfast")

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BatchPipeline",
    "BatchReply",
    "Client",
    "HoldfastError",
    "OpenedBatch",
    "PendingChunk",
    "RetryPolicy",
    "Session",
    "StepReply",
    "Tls",
    "__version__",
    "labels_of",
]
