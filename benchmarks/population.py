"""Many sessions of one model, addressed by number, and loads that spread over some of them.

The loads are closed loops as in `holdfast.bench.loads`, but each message goes to other sessions.
"""

import asyncio
import itertools
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import hiredis
import numpy as np
import redis
from numpy.typing import NDArray

from holdfast.bench.loads import ROWS_OPENED, LoadFailed, Took
from holdfast.v1 import holdfast_pb2 as pb

Numbers = NDArray[np.int64]

_WRITES_AT_ONCE = 500


class Population:
    """Sessions 0 .. count - 1; the number in hexadecimal is the id.

    Args:
        model: Name of their model.
        count: How many there may be.

    Attributes:
        positions: Tokens each has consumed, int64 (count,).
        is_open: Which of them have been opened, bool (count,).
    """

    def __init__(self, model: str, count: int) -> None:
        self.model = pb.ModelRef(name=model)
        self.positions = np.zeros(count, np.int64)
        self.is_open = np.zeros(count, np.bool_)

    @staticmethod
    def id_of(number: int) -> str:
        """Names a session."""
        return f"{number:x}"

    async def open(self, stub: Any, numbers: Numbers) -> None:
        """Opens those of the sessions that have not been opened.

        Raises:
            LoadFailed, grpc.RpcError: A session could not be opened.
        """
        missing = numbers[~self.is_open[numbers]]
        for start in range(0, len(missing), ROWS_OPENED):
            part = missing[start : start + ROWS_OPENED]
            ids = list(map(self.id_of, part.tolist()))
            reply = await stub.OpenBatch(pb.OpenBatchRequest(model=self.model, session_ids=ids))
            if reply.errors:
                raise LoadFailed(f"a session was not opened: {reply.errors[0].status.message}")
            self.is_open[part] = True

    def chunk(self, number: int) -> pb.Chunk:
        """Returns the next token of a session."""
        return pb.Chunk(
            session_id=self.id_of(number),
            model=self.model,
            tokens=pb.Tokens(text=b"x"),
            position=self.positions[number],
        )

    def batch(self, numbers: Numbers) -> pb.Batch:
        """Returns the next token of each of the sessions."""
        return pb.Batch(
            model=self.model,
            session_ids=map(self.id_of, numbers.tolist()),
            positions=self.positions[numbers].tolist(),
            text=b"x" * len(numbers),
        )


def copy_record(client: redis.Redis, socket_path: Path, key: bytes, others: Sequence[bytes]) -> None:
    """Stores the record of one session as that of others too, with the same expiry.

    Args:
        client: Of the store.
        socket_path: Of the store.
        key: Of the record.
        others: Where it goes.
    """
    record, ttl_ms = client.get(key), client.pttl(key)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path))
        for start in range(0, len(others), _WRITES_AT_ONCE):
            part = others[start : start + _WRITES_AT_ONCE]
            connection.sendall(
                b"".join(hiredis.pack_command(("SET", other, record, "PX", ttl_ms)) for other in part)
            )
            replies, received = b"+OK\r\n" * len(part), b""
            while len(received) < len(replies):
                received += connection.recv(1 << 16)
            if received != replies:
                raise RuntimeError("the store refused a record")


class SpreadLoad(ABC):
    """Callers that go round a share of the sessions each, in random order.

    Args:
        population: Whose sessions.
        numbers: The sessions used.
        caller_count: Callers at once.
    """

    def __init__(self, population: Population, numbers: Numbers, caller_count: int) -> None:
        self._population = population
        order = np.random.default_rng().permutation(numbers)
        self._shares = [order[caller::caller_count] for caller in range(caller_count)]

    async def open(self, stubs: Sequence[Any]) -> None:
        """Opens its sessions, as far as nobody did before."""
        await self._population.open(stubs[0], np.concatenate(self._shares))

    async def run(self, stubs: Sequence[Any], seconds: float) -> Took:
        """Loads a server for a while, over one connection; see `ClosedLoop.run`."""
        latencies_s: list[float] = []
        started_s = time.monotonic()
        calls = (self._call(stubs[0], share, started_s + seconds, latencies_s) for share in self._shares)
        step_count = sum(await asyncio.gather(*calls))
        return Took(step_count, time.monotonic() - started_s, latencies_s)

    @abstractmethod
    async def _call(self, stub: Any, share: Numbers, until_s: float, latencies_s: list[float]) -> int:
        """Sends until the time is up; returns the steps."""


class SpreadStreams(SpreadLoad):
    """A stream per caller, one token per message."""

    async def _call(self, stub: Any, share: Numbers, until_s: float, latencies_s: list[float]) -> int:
        call = stub.StreamSteps()
        step_count = 0
        for number in _round_and_round(share):
            sent_s = time.monotonic()
            if sent_s >= until_s:
                break
            await call.write(pb.StreamStepsRequest(chunk=self._population.chunk(number)))
            _check(await call.read())
            latencies_s.append(time.monotonic() - sent_s)
            self._population.positions[number] += 1
            step_count += 1
        await call.done_writing()
        return step_count


class SpreadBatches(SpreadLoad):
    """A stream per caller, one token for each of many sessions per message.

    Args:
        population: Whose sessions.
        numbers: The sessions used, at least `rows` for each caller.
        caller_count: Callers at once.
        rows: Sessions in a message.
        once: Gives every session one token and ends then, whatever the time.
    """

    def __init__(
        self, population: Population, numbers: Numbers, caller_count: int, *, rows: int, once: bool = False
    ) -> None:
        super().__init__(population, numbers, caller_count)
        self._rows = rows
        self._once = once

    async def _call(self, stub: Any, share: Numbers, until_s: float, latencies_s: list[float]) -> int:
        call = stub.StreamBatches()
        step_count = 0
        for numbers in self._messages(share):
            sent_s = time.monotonic()
            if sent_s >= until_s and not self._once:
                break
            await call.write(pb.StreamBatchesRequest(batch=self._population.batch(numbers)))
            reply = await call.read()
            _check(reply)
            if reply.result.errors:
                raise LoadFailed(f"a row failed: {reply.result.errors[0].status.message}")
            latencies_s.append(time.monotonic() - sent_s)
            self._population.positions[numbers] += 1
            step_count += len(numbers)
        await call.done_writing()
        return step_count

    def _messages(self, share: Numbers) -> Iterable[Numbers]:
        """Yields the sessions of each message; only a single round takes in those that fill no message."""
        parts = [share[start : start + self._rows] for start in range(0, len(share), self._rows)]
        if self._once:
            return parts
        return itertools.cycle(part for part in parts if len(part) == self._rows)


def _round_and_round(share: Numbers) -> Iterator[int]:
    """Yields the numbers again and again; a million of them at once would hold up the first messages."""
    while True:
        for start in range(0, len(share), ROWS_OPENED):
            yield from share[start : start + ROWS_OPENED].tolist()


def _check(reply: Any) -> None:
    if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result":
        raise LoadFailed(f"no result: {reply}")
