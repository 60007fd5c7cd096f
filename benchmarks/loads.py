"""What contestants are loaded with. Closed loops: each caller waits for its reply, then sends the next.

Sessions live on from turn to turn, so that after the first turn all of them are hot.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc.aio
import numpy as np
import onnxruntime as ort

from benchmarks.contestants import Contestant
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

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


class Streams:
    """One token per message, one session per stream; `name` sets its sessions apart."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._positions: dict[int, int] = {}

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Streams until the time is up; see `Caller`."""
        call = stub.StreamSteps()
        """Calls until the time is up; see `Caller`."""
        start = position = self._positions.get(number, 0)
        while (sent_s := time.monotonic()) < until_s:
            chunk = pb.Chunk(
                session_id=f"{self._name}-{number}",
                model=MODEL,
                tokens=pb.Tokens(text=b"x"),
                position=position,
            )
            await call.write(pb.StreamStepsRequest(chunk=chunk))
            reply = await call.read()
            if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result":
                raise RuntimeError(f"stream {number}: {reply}")
            latencies.append(time.monotonic() - sent_s)
            position += 1
        await call.done_writing()
        self._positions[number] = position
        return position - start


class Unary:
    """One token per call, one session per caller; `name` sets its sessions apart."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._positions: dict[int, int] = {}

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Calls until the time is up; see `Caller`."""
        start = position = self._positions.get(number, 0)
        while (sent_s := time.monotonic()) < until_s:
            chunk = pb.Chunk(
                session_id=f"{self._name}-{number}",
                model=MODEL,
                tokens=pb.Tokens(text=b"x"),
                position=position,
            )
            await stub.Step(pb.StepRequest(chunk=chunk))
            latencies.append(time.monotonic() - sent_s)
            position += 1
        self._positions[number] = position
        return position - start


class Columns:
    """Rows in columns, one message under way per caller; each caller has sessions of its own."""

    def __init__(self, rows: int, tokens_per_row: int) -> None:
        self._rows = rows
        self._tokens_per_row = tokens_per_row
        self._positions: dict[int, int] = {}

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Streams until the time is up; see `Caller`."""
        rows, count = self._rows, self._tokens_per_row
        call = stub.StreamBatches()
        start = position = self._positions.get(number, 0)
        columns = pb.Columns(
            model=MODEL,
            session_ids=[f"row-{rows}-{count}-{number}-{row}" for row in range(rows)],
            tokens_per_row=count,
            text=b"x" * (rows * count),
        )
        while (sent_s := time.monotonic()) < until_s:
            columns.positions[:] = [position] * rows
            await call.write(pb.StreamBatchesRequest(columns=columns))
            reply = await call.read()
            if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result" or reply.result.errors:
                raise RuntimeError(f"columns {number}: {reply}")
            latencies.append(time.monotonic() - sent_s)
            position += count
        await call.done_writing()
        self._positions[number] = position
        return (position - start) * rows


def bare(session: ort.InferenceSession, rows: int, tokens_per_row: int, seconds: float) -> Round:
    """Runs a GRU step graph alone, one thread, its state fed back."""
    tokens = np.full((tokens_per_row, rows), ord("x"), np.int64)
    h = np.zeros((rows, session.get_inputs()[1].shape[1]), np.float32)
    started_s = time.monotonic()
    calls = 0
    while time.monotonic() < started_s + seconds:
        h = session.run(["logits", "h_next"], {"token": tokens, "h": h})[1]
        calls += 1
    return Round(calls * rows * tokens_per_row / (time.monotonic() - started_s))
