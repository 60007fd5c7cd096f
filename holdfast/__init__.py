"""The client of Holdfast, the streaming inference service for recurrent networks.

with holdfast.Client("localhost:50051") as client:
    session = client.session("user-42", model="python-source")
    reply = session.step("import num", top_k=3)
"""

from importlib.metadata import version

from holdfast.aio import AsyncClient
from holdfast.client import Client
from holdfast.columns import BatchPipeline, BatchReply
from holdfast.errors import HoldfastError
from holdfast.labels import labels_of
from holdfast.opened_batch import OpenedBatch
from holdfast.pending import PendingChunk
from holdfast.reply import StepReply
from holdfast.retry import RetryPolicy
from holdfast.session import AsyncSession
from holdfast.sync_session import Session
from holdfast.tls import Tls

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
