"""Opens sessions for tests that step them by stubs or in rows: no other rpc opens one."""

import grpc

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

MODEL = "python-source"
ROWS = 1000
"""Sessions in a message."""


def open_sessions(stub, ids, model=MODEL, *, timeout_s=30, **options):
    """Opens sessions over a stub without asyncio, each new or where it stands; fails if one is refused."""
    for request in openings(ids, model):
        check_opened(stub.OpenBatch(request, timeout=timeout_s, **options))


async def open_sessions_async(stub, ids, model=MODEL, *, timeout_s=30, **options):
    """Opens sessions over a stub of asyncio, as `open_sessions` does."""
    for request in openings(ids, model):
        check_opened(await stub.OpenBatch(request, timeout=timeout_s, **options))


def open_at(address, *ids, model=MODEL):
    """Opens sessions over a connection of its own."""
    with grpc.insecure_channel(address) as channel:
        open_sessions(StreamingInferenceServiceStub(channel), ids, model)


def openings(ids, model=MODEL):
    """Returns the requests that open sessions."""
    ids = list(ids)
    parts = [ids[start : start + ROWS] for start in range(0, len(ids), ROWS)]
    return [pb.OpenBatchRequest(model=pb.ModelRef(name=model), session_ids=part) for part in parts]


def check_opened(reply):
    """Fails if a session was not opened."""
    assert not reply.errors, reply.errors[0].status.message
