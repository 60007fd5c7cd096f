"""What must not matter: clients that do not read, that fall silent, or that change their minds.

Sixteen paced streams are watched while a nuisance goes on in a process of its own, and in quiet before
and after it. The server may neither keep memory or descriptors for those who misbehave nor let the others
wait for them.
"""

import argparse
import asyncio
import multiprocessing
import random
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.request import urlopen

import grpc.aio
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.contestants import cpu_s
from benchmarks.footprint import descriptor_count, resident_bytes
from benchmarks.section import Ratio, Section
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

TITLE = "What must not matter"
MODEL = pb.ModelRef(name="python-source")
WATCHED = 16
PERIOD_S = 0.01
"""Between two tokens of a watched stream; the server is far from busy."""
ROUNDS = 3
QUIET_S = 1.5
NUISANCE_S = 3.0
SETTLE_S = 0.5
"""Left to the server, after a nuisance has gone, to let go of it."""

SLOW_READERS = 4
SLOW_TOKENS = 60
"""In a chunk: with all logits a reply comes near the 64 KiB it may have."""
SILENT_STREAMS = 200
CANCELLED_CALLS = 10_000
"""In all rounds together."""
CANCELLERS = 32
CANCELLING_SHARE = 0.6
"""Of the period, if the machine keeps up; what was cancelled in fact is counted."""
LONGEST_PATIENCE_S = 0.004
"""A call is cancelled at a random moment up to it."""


class Footprint(NamedTuple):
    """What the server holds."""

    resident_bytes: int
    descriptor_count: int

    def __str__(self) -> str:
        return f"{self.resident_bytes / 2**20:.1f} MiB and {self.descriptor_count} descriptors"


class Watch(NamedTuple):
    """What the watched streams saw in a period: milliseconds to a result, and replies that were none."""

    p50_ms: float
    p99_ms: float
    failed_count: int = 0


class Outcome(NamedTuple):
    """What one nuisance did; one entry per round.

    Attributes:
        quiet: Before and after it.
        disturbed: While it lasted.
        held_bytes: Resident memory of the server at its end, while its calls were still open.
        acts: Calls cancelled.
    """

    quiet: list[Watch]
    disturbed: list[Watch]
    held_bytes: list[int]
    acts: list[int]

    def over_quiet(self, figure: str) -> float:
        """A figure of the watched streams over that in quiet, medians."""
        disturbed, quiet = (
            statistics.median(getattr(watch, figure) for watch in watches)
            for watches in (self.disturbed, self.quiet)
        )
        return float(disturbed / quiet)


def measure(folder: Path, quick: bool) -> Section:
    """Runs all nuisances; see `benchmarks.section.Measure`."""
    if quick:
        return Section(TITLE, "Left out of a quick run.")
    return disturb(folder, ROUNDS, 1.0)


def disturb(folder: Path, rounds: int, scale: float) -> Section:
    """Runs every nuisance in each round.

    Args:
        folder: For the store and the logs.
        rounds: How often.
        scale: Factor on the length of all periods and on the number of cancelled calls.
    """
    with ServerProcess(folder) as server, Progress() as progress:
        bar = progress.add_task("", total=rounds * len(NUISANCES))
        outcomes = {name: Outcome([], [], [], []) for name in NUISANCES}
        _watch(server.address, QUIET_S * scale)  # sessions are opened, caches filled; no nuisance yet
        footprints = [_footprint(server)]
        for _ in range(rounds):
            for name, outcome in outcomes.items():
                progress.update(bar, description=name)
                _disturb(server, name, outcome, scale)
                progress.advance(bar)
            footprints.append(_footprint(server))
        answered_share = asyncio.run(_answered_share(server.address))
        refusals = _refusals(server)
    return _section(outcomes, footprints, refusals, answered_share)


def _disturb(server: ServerProcess, name: str, outcome: Outcome, scale: float) -> None:
    """Quiet, the nuisance, its sudden death, quiet."""
    outcome.quiet.append(_watch(server.address, QUIET_S * scale))
    with _Nuisance(name, server, scale) as nuisance:
        outcome.disturbed.append(_watch(server.address, NUISANCE_S * scale))
        outcome.held_bytes.append(resident_bytes(server.pid))
        outcome.acts.append(nuisance.act_count)
    time.sleep(SETTLE_S)
    outcome.quiet.append(_watch(server.address, QUIET_S * scale))


class _Nuisance:
    """A process that misbehaves until it is killed. Those that only hold on have come to rest at first."""

    def __init__(self, name: str, server: ServerProcess, scale: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._begun = context.Event()
        self._acts = context.Value("q", 0)
        arguments = (name, server.address, scale, self._begun, self._acts)
        self._process = context.Process(target=_misbehave, args=arguments)
        self._rests = name in RESTING
        self._server_pid = server.pid

    def __enter__(self) -> Self:
        """Returns itself once it misbehaves."""
        self._process.start()
        if not self._begun.wait(60):
            raise RuntimeError("the nuisance does not begin")
        while self._rests and self._server_share() > RESTING_SHARE:
            pass
        return self

    @property
    def act_count(self) -> int:
        """Calls cancelled so far."""
        return int(self._acts.value)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def _server_share(self) -> float:
        """Returns the part of a core that the server uses."""
        begun_s = cpu_s(self._server_pid)
        time.sleep(SETTLE_S)
        return (cpu_s(self._server_pid) - begun_s) / SETTLE_S


def _misbehave(name: str, address: str, scale: float, begun: Event, acts: Any) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await NUISANCES[name](StreamingInferenceServiceStub(channel), scale, begun, acts)  # type: ignore[no-untyped-call]
            await asyncio.sleep(3600)

    asyncio.run(run())


async def _read_nothing(stub: Any, _: float, begun: Event, __: Any) -> None:
    """Sends as fast as it may, asks for much, reads nothing."""
    outputs = pb.OutputSelection(tensors=["logits"])

    await _open(stub, "slow", SLOW_READERS)

    async def send(number: int) -> None:
        call = stub.StreamSteps()
        request = pb.StreamStepsRequest(chunk=_chunk(f"slow-{number}", b"x" * SLOW_TOKENS, outputs))
        while True:
            await call.write(request)

    begun.set()
    await asyncio.gather(*map(send, range(SLOW_READERS)))


async def _fall_silent(stub: Any, _: float, begun: Event, __: Any) -> None:
    """Opens streams, sends a chunk on each and is never heard of again."""
    await _open(stub, "silent", SILENT_STREAMS)
    calls = []
    for number in range(SILENT_STREAMS):
        call = stub.StreamSteps()
        await call.write(pb.StreamStepsRequest(chunk=_chunk(f"silent-{number}")))
        if not _is_result(await call.read()):
            raise RuntimeError("a stream was refused before it could fall silent")
        calls.append(call)
    begun.set()
    await asyncio.sleep(3600)


async def _cancel_calls(stub: Any, scale: float, begun: Event, acts: Any) -> None:
    """Begins calls, one half of them streams, and cancels them at random moments."""
    await _open(stub, "cancelled", CANCELLERS)
    numbers = iter(range(int(CANCELLED_CALLS * scale / ROUNDS)))
    pause_s = CANCELLING_SHARE * NUISANCE_S * CANCELLERS * ROUNDS / CANCELLED_CALLS

    async def cancel_some(session_id: str) -> None:
        for number in numbers:
            begun_s = time.monotonic()
            if number % 2:
                call = stub.Step(pb.StepRequest(chunk=_chunk(session_id)))
            else:
                call = stub.StreamSteps()
                await call.write(pb.StreamStepsRequest(chunk=_chunk(session_id)))
            await asyncio.sleep(random.uniform(0, LONGEST_PATIENCE_S))
            call.cancel()
            acts.value += 1
            await asyncio.sleep(max(0.0, begun_s + pause_s - time.monotonic()))

    begun.set()
    await asyncio.gather(*(cancel_some(f"cancelled-{number}") for number in range(CANCELLERS)))


CANCELLED = "cancelled calls"
NUISANCES: dict[str, Callable[[Any, float, Event, Any], Awaitable[None]]] = {
    "silent streams": _fall_silent,
    CANCELLED: _cancel_calls,
    "slow readers": _read_nothing,
}
RESTING = ("slow readers", "silent streams")
"""Nuisances that send no more after a while, and only hold what they hold."""
RESTING_SHARE = 0.1
"""Of a core: below it the server has done what they had sent."""


def _watch(address: str, seconds: float) -> Watch:
    latencies, failed_count = asyncio.run(_watch_streams(address, seconds))
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Watch(float(p50), float(p99), failed_count)


async def _watch_streams(address: str, seconds: float) -> tuple[list[float], int]:
    """Returns the seconds from each token to its result, and how many got an error instead.

    Raises:
        RuntimeError: The server ended a stream.
    """
    latencies: list[float] = []
    failed_count = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        await _open(stub, "watched", WATCHED)
        until_s = time.monotonic() + seconds

        async def step_on(number: int) -> None:
            nonlocal failed_count
            call = stub.StreamSteps()
            request = pb.StreamStepsRequest(chunk=_chunk(f"watched-{number}"))
            due_s = time.monotonic() + PERIOD_S * number / WATCHED
            while due_s < until_s:
                await asyncio.sleep(due_s - time.monotonic())
                sent_s = time.monotonic()
                await call.write(request)
                if _is_result(await call.read()):
                    latencies.append(time.monotonic() - sent_s)
                else:
                    failed_count += 1
                due_s = max(due_s + PERIOD_S, time.monotonic())
            await call.done_writing()

        await asyncio.gather(*map(step_on, range(WATCHED)))
    return latencies, failed_count


async def _open(stub: Any, kind: str, count: int) -> None:
    """Opens the sessions of one kind, or finds them open."""
    ids = [f"{kind}-{number}" for number in range(count)]
    reply = await stub.OpenBatch(pb.OpenBatchRequest(model=MODEL, session_ids=ids))
    if reply.errors:
        raise RuntimeError(f"a session was not opened: {reply.errors[0].status.message}")


def _is_result(reply: Any) -> bool:
    if reply is grpc.aio.EOF:
        raise RuntimeError("the server ended a stream")
    return bool(reply.WhichOneof("outcome") == "result")


def _chunk(session_id: str, text: bytes = b"x", outputs: pb.OutputSelection | None = None) -> pb.Chunk:
    """Returns tokens without a position: whatever became of the chunks before, they are appended."""
    return pb.Chunk(session_id=session_id, model=MODEL, tokens=pb.Tokens(text=text), outputs=outputs)


def _footprint(server: ServerProcess) -> Footprint:
    """Looks once those who have left are forgotten."""
    time.sleep(SETTLE_S)
    return Footprint(resident_bytes(server.pid), descriptor_count(server.pid))


def _refusals(server: ServerProcess) -> dict[str, int]:
    """Returns the errors that the server has counted, by reason."""
    with urlopen(f"http://{server.http}/metrics") as page:
        lines = page.read().decode().splitlines()
    found = (re.fullmatch(r'holdfast_errors_total\{reason="(\w+)"\} (\S+)', line) for line in lines)
    return {match[1]: int(float(match[2])) for match in found if match}


async def _answered_share(address: str) -> float:
    """Returns the part of the sessions of cancelled calls that take another step."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        requests = [pb.StepRequest(chunk=_chunk(f"cancelled-{number}")) for number in range(CANCELLERS)]
        steps = (stub.Step(request, timeout=5) for request in requests)
        replies = await asyncio.gather(*steps, return_exceptions=True)
    return sum(not isinstance(reply, BaseException) for reply in replies) / CANCELLERS


def _section(
    outcomes: dict[str, Outcome],
    footprints: Sequence[Footprint],
    refusals: dict[str, int],
    answered_share: float,
) -> Section:
    before, first, after = footprints[0], footprints[1], footprints[-1]
    ratios = [
        Ratio(
            "memory after all nuisances over before",
            after.resident_bytes / before.resident_bytes,
            at_most=1.15,
        ),
        Ratio(
            f"memory after {len(footprints) - 1} rounds of nuisances over that after the first",
            after.resident_bytes / first.resident_bytes,
            at_most=1.05,
        ),
        Ratio(
            "descriptors after all nuisances over before",
            after.descriptor_count / before.descriptor_count,
            at_most=1.0,
        ),
        Ratio("sessions of cancelled calls that step on, of all", answered_share, at_least=1.0),
    ]
    for name, outcome in outcomes.items():
        held = statistics.median(outcome.held_bytes) / before.resident_bytes
        ratios.append(Ratio(f"{name}: memory while they last over before", held, at_most=1.5))
        if name != CANCELLED:
            p99 = outcome.over_quiet("p99_ms")
            ratios.append(Ratio(f"{name}: p99 of other streams over that in quiet", p99, at_most=2.0))
    watches = [watch for outcome in outcomes.values() for watch in (*outcome.quiet, *outcome.disturbed)]
    failed_count = sum(watch.failed_count for watch in watches)
    ratios.append(Ratio("replies to the watched streams that were errors", failed_count, at_most=0))
    cancelled = sum(act for outcome in outcomes.values() for act in outcome.acts)
    goal = Ratio(
        f"while {CANCELLED_CALLS:,} calls are cancelled: p99 of other streams over that in quiet",
        outcomes[CANCELLED].over_quiet("p99_ms"),
        at_most=1.5,
    )
    listed = ", ".join(f"{count:,} {reason}" for reason, count in refusals.items() if count) or "none"
    text = (
        f"{WATCHED} streams with a token every {PERIOD_S * 1e3:.0f} ms each, in quiet and while a process "
        f"misbehaves, on the same cores, that is killed in the end: {SLOW_READERS} streams that send and "
        "never read, "
        f"{SILENT_STREAMS} that fall silent and never end, {cancelled:,} calls cancelled within "
        f"{LONGEST_PATIENCE_S * 1e3:.0f} ms, half of them streams.\n\n{_table(outcomes)}\n\n"
        f"Before: {before}; after: {after}. Errors counted: {listed}."
    )
    data = {
        "outcomes": {
            name: {
                "quiet": [watch._asdict() for watch in outcome.quiet],
                "disturbed": [watch._asdict() for watch in outcome.disturbed],
                "held_bytes": outcome.held_bytes,
                "acts": outcome.acts,
            }
            for name, outcome in outcomes.items()
        },
        "before": before._asdict(),
        "after": after._asdict(),
        "refusals": refusals,
    }
    return Section(TITLE, text, ratios, data, goals=[goal])


def _table(outcomes: dict[str, Outcome]) -> str:
    lines = [
        "| nuisance | p50 ms, quiet | p50 ms | p99 ms, quiet | p99 ms | memory MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, outcome in outcomes.items():
        figures = (
            statistics.median(getattr(watch, figure) for watch in watches)
            for figure in ("p50_ms", "p99_ms")
            for watches in (outcome.quiet, outcome.disturbed)
        )
        cells = " | ".join(f"{value:.2f}" for value in figures)
        lines.append(f"| {name} | {cells} | {statistics.median(outcome.held_bytes) / 2**20:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nuisances", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scale", type=float, default=1.0, help="of times and calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        section = disturb(Path(folder), options.rounds, options.scale)
    Console(width=160).print(section.text, *section.ratios, *section.goals, sep="\n\n", highlight=False)


if __name__ == "__main__":
    main()
