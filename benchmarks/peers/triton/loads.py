"""Loads for Triton by the stock message types of tritonclient, one token per message.

Each turn starts a sequence per caller and ends it. The messages of a caller are made once and sent again,
which costs the load less than it spends on Holdfast's.
"""

import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.peers.triton.environment import PACKAGES
from holdfast.bench.loads import DRAWS, LoadFailed, Send

_sequence_ids = itertools.count(1)


def make_stub(channel: grpc.aio.Channel) -> Any:
    """Makes a stub of Triton's service; messages come from the environment of Triton."""
    _import_stock()
    from tritonclient.grpc import service_pb2_grpc

    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@asynccontextmanager
async def streams(stub: Any, _: Sequence[str]) -> AsyncIterator[Send]:
    """A stream per caller."""
    call = stub.ModelStreamInfer()

    async def exchange(request: Any) -> Any:
        await call.write(request)
        reply = await call.read()
        if reply is grpc.aio.EOF:
            raise LoadFailed("Triton ended the stream")
        if reply.error_message:
            raise LoadFailed(reply.error_message)
        return reply.infer_response

    async with _sequence(exchange) as send:
        yield send
    await call.done_writing()


@asynccontextmanager
async def unary(stub: Any, _: Sequence[str]) -> AsyncIterator[Send]:
    """A call per token."""
    async with _sequence(stub.ModelInfer) as send:
        yield send


@asynccontextmanager
async def _sequence(exchange: Any) -> AsyncIterator[Send]:
    sequence_id = next(_sequence_ids)
    tokens = np.random.default_rng(sequence_id).integers(256, size=DRAWS)
    requests = [_request(sequence_id, token) for token in tokens]
    reply = await exchange(_request(sequence_id, tokens[0], "sequence_start"))
    if not all(reply.raw_output_contents):
        raise LoadFailed("Triton answered with empty tensors")

    async def send(position: int) -> None:
        await exchange(requests[position % DRAWS])

    yield send
    await exchange(_request(sequence_id, tokens[0], "sequence_end"))


def _request(sequence_id: int, token: np.int64, *flags: str) -> Any:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="gru", raw_input_contents=[token.tobytes()])
    request.inputs.add(name="token", datatype="INT64", shape=[1, 1])
    request.parameters["sequence_id"].int64_param = sequence_id
    for flag in flags:
        request.parameters[flag].bool_param = True
    return request


def _import_stock() -> None:
    """Lets tritonclient be found, behind the project's own packages."""
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
