"""The client of Holdfast, the streaming inference service for recurrent networks.

with holdfast.Client("localhost:50051") as client:
    session = client.session("user-42", model="python-source")
    reply = session.step("import num", top_k=3)
"""

from importlib.metadata import version

from holdfast.aio import AsyncClient
from holdfast.client import Client, Session
from holdfast.columns import BatchPipeline, BatchReply
from holdfast.errors import HoldfastError
from holdfast.reply import StepReply
from holdfast.retry import RetryPolicy
from holdfast.session import AsyncSession
from holdfast.tls import Tls

__version__ = version("holdfast")

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BatchPipeline",
    "BatchReply",
    "Client",
    "HoldfastError",
    "RetryPolicy",
    "Session",
    "StepReply",
    "Tls",
    "__version__",
]
