"""Closed loops over gRPC: each caller waits for its reply, then sends the next message."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import grpc.aio
import numpy as np

from holdfast.bench.payload import Payload
from holdfast.v1 import holdfast_pb2 as pb

DRAWS = 16
"""Messages drawn beforehand and sent in turns: drawing costs more than sending."""

CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
"""Channels to one address do not share a connection."""

ROWS_OPENED = 1024
"""Sessions opened by one message."""

PATIENCE_S = 30.0
"""Longest wait for the last replies."""

Metadata = tuple[tuple[str, str], ...]

Send = Callable[[int], Awaitable[None]]
"""Sends the next message at a position and returns after its reply."""

Open = Callable[[Any, Sequence[str]], Awaitable[None]]
"""Given a stub, opens sessions; see `opening`."""

OpenCall = Callable[[Any, Sequence[str]], AbstractAsyncContextManager[Send]]
"""Given the stub and the sessions of one caller."""


class LoadFailed(Exception):
    """A message was answered with an error, or not at all."""


class Took(NamedTuple):
    """What a load came to.

    Attributes:
        step_count: Tokens answered.
        elapsed_s: From the first message to the last reply.
        latencies_s: From each message to its reply.
    """

    step_count: int
    elapsed_s: float
    latencies_s: list[float]

    @property
    def steps_per_s(self) -> float:
        """Tokens answered per second."""
        return self.step_count / self.elapsed_s

    def percentiles_ms(self) -> tuple[float, float, float]:
        """Median, 99th and 99.9th percentile of the latencies."""
        p50, p99, p999 = np.percentile(self.latencies_s, [50, 99, 99.9]) * 1e3
        return float(p50), float(p99), float(p999)


class ClosedLoop:
    """Callers with sessions of their own. These live on from run to run, so after the first they are hot.

    Args:
        name: Sets its sessions apart from those of other loads.
        caller_count: Callers at once.
        open_call: `streams`, `unary` or `batches`.
        rows: Sessions in a message.
        tokens_per_row: Tokens of each.
        opening: How its sessions are opened; None where a server needs no opening.
    """

    def __init__(
        self,
        name: str,
        caller_count: int,
        open_call: OpenCall,
        *,
        rows: int = 1,
        tokens_per_row: int = 1,
        opening: Open | None = None,
    ) -> None:
        self._open_call = open_call
        self._opening = opening
        self._tokens_per_row = tokens_per_row
        self._sessions = [
            [f"{name}-{number}-{row}" for row in range(rows)] for number in range(caller_count)
        ]
        self._positions = [0] * caller_count

    @property
    def session_ids(self) -> list[str]:
        """All its sessions."""
        return [session_id for sessions in self._sessions for session_id in sessions]

    async def open(self, stubs: Sequence[Any]) -> None:
        """Opens its sessions if that was not done before; not part of what is measured.

        Raises:
            LoadFailed, grpc.RpcError: A session could not be opened.
        """
        if self._opening is not None:
            await self._opening(stubs[0], self.session_ids)
            self._opening = None

    async def run(self, stubs: Sequence[Any], seconds: float) -> Took:
        """Loads a server for a while, once its sessions are open.

        Args:
            stubs: One per connection; callers take them in turns.
            seconds: How long messages are sent.

        Raises:
            LoadFailed, grpc.RpcError: Of the first message that failed; the other callers have stopped.
        """
        latencies_s: list[float] = []
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(seconds + PATIENCE_S), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._call(stubs[number % len(stubs)], number, started_s + seconds, latencies_s)
                    )
                    for number in range(len(self._sessions))
                ]
        except* (LoadFailed, grpc.RpcError) as failed:
            raise failed.exceptions[0] from None
        except* TimeoutError:
            raise LoadFailed(f"no reply within {PATIENCE_S:g} s") from None
        if not latencies_s:
            raise LoadFailed(f"no reply within {seconds:g} s")
        return Took(sum(task.result() for task in tasks), time.monotonic() - started_s, latencies_s)

    async def _call(self, stub: Any, number: int, until_s: float, latencies_s: list[float]) -> int:
        sessions = self._sessions[number]
        start = position = self._positions[number]
        async with self._open_call(stub, sessions) as send:
            while (sent_s := time.monotonic()) < until_s:
                await send(position)
                latencies_s.append(time.monotonic() - sent_s)
                position += self._tokens_per_row
        self._positions[number] = position
        return (position - start) * len(sessions)


def opening(payload: Payload, metadata: Metadata = ()) -> Open:
    """Opens the sessions of a load: no token opens one."""

    async def open_sessions(stub: Any, session_ids: Sequence[str]) -> None:
        for start in range(0, len(session_ids), ROWS_OPENED):
            part = session_ids[start : start + ROWS_OPENED]
            request = pb.OpenBatchRequest(model=payload.model, session_ids=part)
            reply = await stub.OpenBatch(request, metadata=metadata, timeout=PATIENCE_S)
            if reply.errors:
                raise LoadFailed(f"a session was not opened: {reply.errors[0].status.message}")

    return open_sessions


def streams(payload: Payload, metadata: Metadata = ()) -> OpenCall:
    """One token per message, a stream per caller."""
    tokens = [payload.tokens(1) for _ in range(DRAWS)]

    @asynccontextmanager
    async def open_call(stub: Any, session_ids: Sequence[str]) -> AsyncIterator[Send]:
        call = stub.StreamSteps(metadata=metadata)

        async def send(position: int) -> None:
            chunk = _chunk(session_ids[0], payload.model, tokens, position)
            await call.write(pb.StreamStepsRequest(chunk=chunk))
            _check(await call.read())

        yield send
        await call.done_writing()

    return open_call


def unary(payload: Payload, metadata: Metadata = ()) -> OpenCall:
    """One token per call."""
    tokens = [payload.tokens(1) for _ in range(DRAWS)]

    @asynccontextmanager
    async def open_call(stub: Any, session_ids: Sequence[str]) -> AsyncIterator[Send]:
        async def send(position: int) -> None:
            chunk = _chunk(session_ids[0], payload.model, tokens, position)
            await stub.Step(pb.StepRequest(chunk=chunk), metadata=metadata)

        yield send

    return open_call


def batches(payload: Payload, tokens_per_row: int, metadata: Metadata = ()) -> OpenCall:
    """All sessions of a caller in one message, on a stream."""

    @asynccontextmanager
    async def open_call(stub: Any, session_ids: Sequence[str]) -> AsyncIterator[Send]:
        call = stub.StreamBatches(metadata=metadata)
        message = payload.batch(session_ids, tokens_per_row)

        async def send(position: int) -> None:
            message.positions[:] = [position] * len(session_ids)
            await call.write(pb.StreamBatchesRequest(batch=message))
            reply = await call.read()
            _check(reply)
            if reply.result.errors:
                raise LoadFailed(f"a row failed: {reply.result.errors[0].status.message}")

        yield send
        await call.done_writing()

    return open_call


def _chunk(session_id: str, model: pb.ModelRef, tokens: Sequence[pb.Tokens], position: int) -> pb.Chunk:
    return pb.Chunk(
        session_id=session_id, model=model, tokens=tokens[position % len(tokens)], position=position
    )


def _check(reply: Any) -> None:
    if reply is grpc.aio.EOF:
        raise LoadFailed("the server ended the stream")
    if reply.WhichOneof("outcome") != "result":
        raise LoadFailed(reply.error.status.message)
