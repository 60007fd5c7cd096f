"""Many sessions of one model, addressed by number, and loads that spread over some of them.

The loads are closed loops: each caller waits for its reply, then sends the next message, to other
sessions of its share.
"""

import itertools
import time
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from holdfast.v1 import holdfast_pb2 as pb

Numbers = NDArray[np.int64]


class Population:
    """Sessions 0 .. count - 1; the number in hexadecimal is the id.

    Args:
        model: Name of their model.
        count: How many there may be.

    Attributes:
        positions: Tokens each has consumed, int64 (count,).
    """

    def __init__(self, model: str, count: int) -> None:
        self.model = pb.ModelRef(name=model)
        self.positions = np.zeros(count, np.int64)

    def columns(self, numbers: Numbers, tokens_per_row: int) -> pb.Columns:
        """Returns the message that gives each of the sessions its next tokens."""
        return pb.Columns(
            model=self.model,
            session_ids=[f"{number:x}" for number in numbers.tolist()],
            positions=self.positions[numbers].tolist(),
            tokens_per_row=tokens_per_row,
            text=b"x" * (len(numbers) * tokens_per_row),
        )


class Streams:
    """Implements `loads.Caller`: one token per message on a stream, another session each time.

    Args:
        population: Whose sessions.
        numbers: The sessions used; each of `count` callers takes its share of them, in random order.
        count: Callers.
    """

    def __init__(self, population: Population, numbers: Numbers, count: int) -> None:
        self._population = population
        self._shares = _shares(numbers, count)

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Sends until the time is up; see `Caller`."""
        population, steps = self._population, 0
        call = stub.StreamSteps()
        for session in itertools.cycle(self._shares[number].tolist()):
            sent_s = time.monotonic()
            if sent_s >= until_s:
                break
            chunk = pb.Chunk(
                session_id=f"{session:x}",
                model=population.model,
                tokens=pb.Tokens(text=b"x"),
                position=population.positions[session],
            )
            await call.write(pb.StreamStepsRequest(chunk=chunk))
            _check(await call.read())
            latencies.append(time.monotonic() - sent_s)
            population.positions[session] += 1
            steps += 1
        await call.done_writing()
        return steps


class Columns:
    """Implements `loads.Caller`: rows of other sessions in each message.

    Args:
        population: Whose sessions.
        numbers: The sessions used, at least `rows` for each caller.
        count: Callers.
        rows: Sessions in a message.
        tokens_per_row: Tokens of each.
        once: Ends when each session has had its turn, whatever the time.
    """

    def __init__(
        self,
        population: Population,
        numbers: Numbers,
        count: int,
        *,
        rows: int,
        tokens_per_row: int = 1,
        once: bool = False,
    ) -> None:
        self._population = population
        self._shares = _shares(numbers, count)
        self._rows = rows
        self._tokens_per_row = tokens_per_row
        self._once = once

    async def __call__(self, stub: Any, number: int, until_s: float, latencies: list[float]) -> int:
        """Sends until the time is up; see `Caller`."""
        steps = 0
        call = stub.StreamBatches()
        for rows in self._messages(self._shares[number]):
            sent_s = time.monotonic()
            if sent_s >= until_s and not self._once:
                break
            columns = self._population.columns(rows, self._tokens_per_row)
            await call.write(pb.StreamBatchesRequest(columns=columns))
            reply = await call.read()
            _check(reply)
            if reply.result.errors:
                raise RuntimeError(f"rows failed: {reply.result.errors[0]}")
            latencies.append(time.monotonic() - sent_s)
            self._population.positions[rows] += self._tokens_per_row
            steps += len(rows) * self._tokens_per_row
        await call.done_writing()
        return steps

    def _messages(self, share: Numbers) -> Any:
        """Yields the sessions of each message."""
        if self._once:
            return [share[start : start + self._rows] for start in range(0, len(share), self._rows)]
        full = range(0, len(share) - self._rows + 1, self._rows)
        return itertools.cycle([share[start : start + self._rows] for start in full])


def _shares(numbers: Numbers, count: int) -> list[Numbers]:
    order = np.random.default_rng().permutation(numbers)
    return [order[caller::count] for caller in range(count)]


def _check(reply: Any) -> None:
    if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result":
        raise RuntimeError(f"no result: {reply}")
