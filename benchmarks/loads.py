"""What contestants are loaded with. Closed loops: each caller waits for its reply, then sends the next.

Sessions live on from turn to turn, so that after the first turn all of them are hot.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import grpc.aio
import numpy as np
import onnxruntime as ort

from benchmarks.contestants import Contestant
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

SWITCH = "token_log_prob_wanted"
MODEL = pb.ModelRef(name="python-source")
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


class Round(NamedTuple):
    """One turn.

    Attributes:
        steps_per_s: Tokens answered per second.
        server_us: CPU time of the server per step, microseconds.
        store_us: CPU time of the store per step, microseconds.
        p50_ms: Median time from a message to its reply, milliseconds.
        p99_ms: Its 99th percentile.
        p999_ms: Its 99.9th percentile.
    """

    steps_per_s: float
    server_us: float = 0.0
    store_us: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0


Caller = Callable[[Any, int, float, list[float]], Awaitable[int]]
"""Given stub, number, end and list of latencies in seconds; returns its steps."""


def load(contestant: Contestant, caller: Caller, count: int, seconds: float) -> Round:
    """Runs `count` callers for a while over one connection."""
    return asyncio.run(_load(contestant, caller, count, seconds))


async def _load(contestant: Contestant, caller: Caller, count: int, seconds: float) -> Round:
    async with grpc.aio.insecure_channel(contestant.address, options=_OPTIONS) as channel:
        stub = StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        latencies: list[float] = []
        started_s, (server_s, store_s) = time.monotonic(), contestant.cpu_s()
        until_s = started_s + seconds
        callers = (caller(stub, number, until_s, latencies) for number in range(count))
        steps = sum(await asyncio.gather(*callers))
        elapsed_s, (server_end_s, store_end_s) = time.monotonic() - started_s, contestant.cpu_s()
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9]) * 1e3
    return Round(
        steps / elapsed_s,
        (server_end_s - server_s) / steps * 1e6,
        (store_end_s - store_s) / steps * 1e6,
        p50,
        p99,
        p999,
    )


Send = Callable[[int], Awaitable[None]]
"""Sends the next message at a position and returns after its reply."""

OpenCall = Callable[[Any, str], AbstractAsyncContextManager[Send]]
"""Given stub and the name of a caller; sessions are named after it."""


class ClosedLoop:
    """Implements `Caller`: each caller has sessions of its own and one message under way.

    Args:
        name: Sets its sessions apart from those of other loads.
        open_call: `streams`, `unary` or `columns(rows, tokens_per_row)`.
        rows: Sessions in a message.
        tokens_per_row: Tokens of each.
    """

    def __init__(self, name: str, open_call: OpenCall, *, rows: int = 1, tokens_per_row: int = 1) -> None:
        self._name = name
        self._open_call = open_call
        self._rows = rows
        self._tokens_per_row = tokens_per_row
        self._positions: dict[int, int] = {}

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Sends until the time is up; see `Caller`."""
        start = position = self._positions.get(number, 0)
        async with self._open_call(stub, f"{self._name}-{number}") as send:
            while (sent_s := time.monotonic()) < until_s:
                await send(position)
                latencies.append(time.monotonic() - sent_s)
                position += self._tokens_per_row
        self._positions[number] = position
        return (position - start) * self._rows


@asynccontextmanager
async def streams(stub: Any, name: str) -> AsyncIterator[Send]:
    """One token per message on a stream."""
    call = stub.StreamSteps()

    async def send(position: int) -> None:
        await call.write(pb.StreamStepsRequest(chunk=_chunk(name, position)))
        _check(await call.read())

    yield send
    await call.done_writing()


@asynccontextmanager
async def unary(stub: Any, name: str) -> AsyncIterator[Send]:
    """One token per call."""

    async def send(position: int) -> None:
        await stub.Step(pb.StepRequest(chunk=_chunk(name, position)))

    yield send


def columns(rows: int, tokens_per_row: int) -> OpenCall:
    """Rows in columns on a stream."""

    @asynccontextmanager
    async def open_call(stub: Any, name: str) -> AsyncIterator[Send]:
        call = stub.StreamBatches()
        message = pb.Columns(
            model=MODEL,
            session_ids=[f"{name}-{row}" for row in range(rows)],
            tokens_per_row=tokens_per_row,
            text=b"x" * (rows * tokens_per_row),
        )

        async def send(position: int) -> None:
            message.positions[:] = [position] * rows
            await call.write(pb.StreamBatchesRequest(columns=message))
            reply = await call.read()
            _check(reply)
            if reply.result.errors:
                raise RuntimeError(f"rows failed: {reply.result.errors[0]}")

        yield send
        await call.done_writing()

    return open_call


def _chunk(session_id: str, position: int) -> pb.Chunk:
    return pb.Chunk(session_id=session_id, model=MODEL, tokens=pb.Tokens(text=b"x"), position=position)


def _check(reply: Any) -> None:
    if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result":
        raise RuntimeError(f"no result: {reply}")


def bare(session: ort.InferenceSession, rows: int, tokens_per_row: int, seconds: float) -> Round:
    """Runs a GRU step graph alone, one thread, its state fed back."""
    tokens = np.full((tokens_per_row, rows), ord("x"), np.int64)
    h = np.zeros((rows, session.get_inputs()[1].shape[1]), np.float32)
    started_s = time.monotonic()
    calls, off = 0, np.array(False)  # nor do the servers compute what nobody asks for
    while time.monotonic() < started_s + seconds:
        h = session.run(["logits", "h_next"], {"token": tokens, "h": h, SWITCH: off})[1]
        calls += 1
    return Round(calls * rows * tokens_per_row / (time.monotonic() - started_s))
