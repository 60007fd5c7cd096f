"""What a step costs the client library itself: Python beside gRPC, over a server that answers at once.

    python -m benchmarks.client_path

The server is a function in the same process, which answers each message in the next turn of the event
loop. Messages are serialised and parsed as gRPC does it; what the server takes is measured and not counted.
So the figures are those of positions, tokens, batches and futures. The counts of calls and of turns of the
loop are the same on every machine.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import numpy as np

from holdfast.client.calls import Calls
from holdfast.client.retry import RetryPolicy
from holdfast.client.session import AsyncSession
from holdfast.client.steps import Steps
from holdfast.client.writer import Writer
from holdfast.history_digest import INITIAL, after, sums_of
from holdfast.v1 import holdfast_pb2 as pb

CALLERS = (1, 64, 256, 1024)
STEPS = 30_000
"""Of all callers together, in a round."""

WARM_UP = 20
MODEL = pb.ModelRef(name="m", version=1)


class Instant:
    """A connection, and the server at its other end.

    Attributes:
        server_s: CPU time of the answers.
    """

    replica_count = 1
    is_inherited = is_closed = False

    def __init__(self) -> None:
        self.server_s = 0.0

    def check(self) -> None:
        """It may always be used."""

    def next_stub(self) -> "Instant":
        """Returns itself."""
        return self

    def current(self) -> "Instant":
        """Returns itself."""
        return self

    def suspect(self, used: Any, waited_s: float | None = None) -> None:
        """It is never silent."""

    async def close(self) -> None:
        """Holds nothing."""

    def StreamBatches(self, *, metadata: Any) -> "InstantStream":  # noqa: N802 -- gRPC's name
        """Opens a stream."""
        return InstantStream(self)


class InstantStream:
    """As far as the client uses `holdfast.client.connection.Stream`."""

    is_over = False

    def __init__(self, connection: Instant) -> None:
        self._connection = connection
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self.since_s = time.monotonic()

    async def write(self, request: pb.StreamBatchesRequest) -> None:
        """Takes a message, as bytes."""
        asyncio.get_running_loop().call_soon(self._answer, request.SerializeToString())

    async def read(self) -> pb.StreamBatchesResponse:
        """Returns the next reply."""
        reply = pb.StreamBatchesResponse.FromString(await self._replies.get())
        self.since_s = time.monotonic()
        return reply

    async def done_writing(self) -> None:
        """Nothing follows."""

    async def code(self) -> None:
        """It has no status."""

    def cancel(self) -> None:
        """Nothing is under way that a cancellation could end."""

    def _answer(self, raw: bytes) -> None:
        began_s = time.thread_time()
        batch = pb.StreamBatchesRequest.FromString(raw).batch
        count, rows = batch.tokens_per_row, len(batch.session_ids)
        elements = np.frombuffer(batch.text, np.uint8).reshape(rows, count)
        digests = after(np.array(batch.history_digests, np.int64), sums_of(elements), count)
        result = pb.BatchResult(
            tag=batch.tag,
            positions=[position + count for position in batch.positions],
            incarnations=batch.incarnations,
            history_digests=digests.tolist(),
            model_version=1,
            outputs=pb.Outputs(token_count=rows * count),
        )
        self._replies.put_nowait(pb.StreamBatchesResponse(result=result).SerializeToString())
        self._connection.server_s += time.thread_time() - began_s


class Cost(NamedTuple):
    """Of a step.

    Attributes:
        cpu_us: CPU time of the client, in microseconds.
        calls: Functions of the client called.
        turns: Turns of the event loop.
    """

    cpu_us: float
    calls: float
    turns: float


class Load:
    """Callers with a session each, who send the next token when they have the reply to the last.

    Args:
        caller_count: How many.
        as_streams: Each of them reads a `session.stream` instead of calling `session.step`.
    """

    def __init__(self, caller_count: int, *, as_streams: bool) -> None:
        self._caller_count = caller_count
        self._as_streams = as_streams
        self._connection = Instant()
        calls = Calls(
            self._connection,
            token=None,
            retry=RetryPolicy(),
            timeout_s=30.0,
            ack_level=None,
            history=None,
        )
        self._steps = Steps(calls)
        self._sessions = [self._open(calls, number) for number in range(caller_count)]

    async def run(self, step_count: int) -> float:
        """Steps on; returns the CPU seconds that the client took."""
        each = max(1, step_count // self._caller_count)
        call = self._stream if self._as_streams else self._step
        server_s, began_s = self._connection.server_s, time.thread_time()
        await asyncio.gather(*(call(session, each) for session in self._sessions))
        return time.thread_time() - began_s - (self._connection.server_s - server_s)

    async def close(self) -> None:
        """Ends its stream."""
        await self._steps.close()

    def _open(self, calls: Calls, number: int) -> AsyncSession:
        session = pb.Session(
            session_id=f"session-{number}", model=MODEL, incarnation=1, history_digest=INITIAL
        )
        opened = pb.OpenSessionResponse(session=session)
        return AsyncSession(Writer(calls, self._steps, self._connection, opened, [], 65_536))

    async def _step(self, session: AsyncSession, count: int) -> None:
        for _ in range(count):
            await session.step(b"a")

    async def _stream(self, session: AsyncSession, count: int) -> None:
        async def source() -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"a"

        async for _ in session.stream(source()):
            pass


async def cost_of(caller_count: int, *, as_streams: bool, rounds: int) -> Cost:
    """Returns the cheapest of several rounds: what else the machine does only adds to one."""
    load = Load(caller_count, as_streams=as_streams)
    await load.run(WARM_UP * caller_count)
    steps = max(STEPS // (8 if caller_count == 1 else 1) // caller_count, 8) * caller_count
    took_s = [await load.run(steps) for _ in range(rounds)]
    with _Counting() as counting:
        await load.run(WARM_UP * caller_count)
    await load.close()
    per_step = WARM_UP * caller_count
    return Cost(min(took_s) / steps * 1e6, counting.calls / per_step, counting.turns / per_step)


class _Counting:
    """Counts, while it is entered, what is called of the client and how often the loop turns."""

    def __enter__(self) -> Self:
        self.calls = self.turns = 0
        self.by_name: Counter[str] = Counter()
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if "holdfast" in path.parts or path.name in ("contextlib.py", "enum.py", "functools.py"):
            self.calls += 1
            self.by_name[f"{path.name}:{frame.f_code.co_qualname}"] += 1
        elif name == "_run_once":
            self.turns += 1


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description="Measures what a step costs the client's own Python.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'':24}{'CPU us':>8}{'calls':>8}{'turns':>8}  a step")
    for as_streams in (False, True):
        for count in CALLERS:
            cost = asyncio.run(cost_of(count, as_streams=as_streams, rounds=options.rounds))
            name = f"{count} {'streams' if as_streams else 'callers of step'}"
            print(f"{name:24}{cost.cpu_us:8.1f}{cost.calls:8.1f}{cost.turns:8.3f}")


if __name__ == "__main__":
    main()
