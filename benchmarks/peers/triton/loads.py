"""Loads for Triton by tritonclient, one token per message.

Twice: by its message types and stubs, each message made once and sent again, which costs the load less than
it spends on Holdfast's; and by its asyncio client, as its users call it. Each turn starts a sequence per
caller and ends it.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.peers.triton.environment import PACKAGES
from holdfast.bench.loads import CHANNEL_OPTIONS, DRAWS, LoadFailed, Send

_MODEL = "gru"

_sequence_ids = itertools.count(1)


@asynccontextmanager
async def by_grpc(address: str) -> AsyncIterator[Any]:
    """Connects as a plain gRPC caller does; gives a stub of Triton's service."""
    _import_stock()
    from tritonclient.grpc import service_pb2_grpc

    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@asynccontextmanager
async def by_client(address: str) -> AsyncIterator[Any]:
    """Connects with Triton's own asyncio client."""
    _import_stock()
    from tritonclient.grpc.aio import InferenceServerClient

    async with InferenceServerClient(address) as client:
        yield client


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
async def client_streams(client: Any, _: Sequence[str]) -> AsyncIterator[Send]:
    """A `stream_infer` per caller."""
    asked: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def source() -> AsyncIterator[dict[str, Any]]:
        while (request := await asked.get()) is not None:
            yield {"model_name": _MODEL, **request}

    replies = client.stream_infer(source())

    async def exchange(**request: Any) -> Any:
        asked.put_nowait(request)
        result, error = await anext(replies)
        if error is not None:
            raise LoadFailed(str(error))
        return result

    async with _client_sequence(exchange) as send:
        yield send
    asked.put_nowait(None)


@asynccontextmanager
async def client_unary(client: Any, _: Sequence[str]) -> AsyncIterator[Send]:
    """An `infer` per token."""

    async def exchange(**request: Any) -> Any:
        return await client.infer(_MODEL, **request)

    async with _client_sequence(exchange) as send:
        yield send


@asynccontextmanager
async def _sequence(exchange: Any) -> AsyncIterator[Send]:
    sequence_id = next(_sequence_ids)
    tokens = _draw(sequence_id)
    requests = [_request(sequence_id, token) for token in tokens]
    reply = await exchange(_request(sequence_id, tokens[0], "sequence_start"))
    if not all(reply.raw_output_contents):
        raise LoadFailed("Triton answered with empty tensors")

    async def send(position: int) -> None:
        await exchange(requests[position % DRAWS])

    yield send
    await exchange(_request(sequence_id, tokens[0], "sequence_end"))


@asynccontextmanager
async def _client_sequence(exchange: Any) -> AsyncIterator[Send]:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    sequence_id = next(_sequence_ids)
    tokens = _draw(sequence_id)

    async def send(position: int, **flags: bool) -> None:
        token = InferInput("token", [1, 1], "INT64")
        token.set_data_from_numpy(tokens[position % DRAWS].reshape(1, 1))
        try:
            result = await exchange(inputs=[token], sequence_id=sequence_id, **flags)
        except InferenceServerException as error:
            raise LoadFailed(str(error)) from None
        if not len(result.as_numpy("top_ids")):
            raise LoadFailed("Triton answered with empty tensors")

    await send(0, sequence_start=True)
    yield send
    await send(0, sequence_end=True)


def _draw(seed: int) -> Any:
    return np.random.default_rng(seed).integers(256, size=DRAWS)


def _request(sequence_id: int, token: np.int64, *flags: str) -> Any:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=_MODEL, raw_input_contents=[token.tobytes()])
    request.inputs.add(name="token", datatype="INT64", shape=[1, 1])
    request.parameters["sequence_id"].int64_param = sequence_id
    for flag in flags:
        request.parameters[flag].bool_param = True
    return request


def _import_stock() -> None:
    """Lets tritonclient be found, behind the project's own packages."""
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
