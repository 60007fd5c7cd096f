"""Growth: what one more stored session costs, from a thousand to a million of them.

Three questions: does a step get slower as the store fills, what does an idle session take there, and
what does a session pay whose state is not in the server's memory. A second server with a thousand sessions
takes turns with the one that grows, so that what else the machine does falls on both.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc.aio
import numpy as np
import redis
import uvloop
from rich.console import Console
from rich.progress import Progress

from benchmarks.contestants import Contestant
from benchmarks.footprint import resident_bytes
from benchmarks.loads import load
from benchmarks.population import Population, SpreadBatches, SpreadLoad, SpreadStreams
from benchmarks.results import HOLDFAST, Round
from benchmarks.section import Ratio, Section
from holdfast.bench.loads import LoadFailed
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.settings.schema import Settings
from service.store.embedded import EmbeddedStore
from service.store.opening import create_store

TITLE = "Growth"
MODEL = "python-source"
STATE_BYTES = 1024
"""GRU-256 in float32."""
RECORD_BYTES = 160
"""What a record may add to state and key, beside the reply it keeps."""
FEW = 1_024
"""Sessions of the server that does not grow; also the part in use of the many, in some loads."""
SIZES = (100_000, 1_000_000)
STREAMS = (1, 16, 64, 256, 1024)
COMPARED = ("64 streams", "256 rows x 1")
"""Loads whose speed is compared with that at few sessions; they have more turns."""
ROUNDS = 4
COLD_TURNS = 3000
LITTLE_MEMORY_BYTES = 64 * STATE_BYTES
"""Hot states of the server on which every session is cold."""

_runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
"""As the server's loop; never closed, since gRPC delivers what is left of a call to it."""


class Stage(NamedTuple):
    """What was measured at one number of stored sessions.

    Attributes:
        stored: Sessions in the store.
        hot_share: Part of them that fits in the server's memory.
        server_bytes: Resident memory of the server.
        store_bytes: Resident memory of the store.
        bytes_per_session: What the store's allocator gave out for each, from `used_memory`.
        rounds: By label of the load.
        beside: The same on the server with few sessions, in the same turns.
    """

    stored: int
    hot_share: float
    server_bytes: int
    store_bytes: int
    bytes_per_session: float
    rounds: dict[str, list[Round]]
    beside: dict[str, list[Round]]

    def over_few(self, label: str, figure: str) -> float:
        """A figure of a load over that with few sessions stored."""
        return _median(self.rounds[label], figure) / _median(self.beside[label], figure)


class Cold(NamedTuple):
    """A caller alone on a server that keeps 64 states: p50 of steps taken by turns, milliseconds.

    Attributes:
        cold_ms: The step of a session that is not in memory.
        hot_ms: The next step of the same session.
        round_trip_ms: Reading one record over a connection like the server's, after that.
    """

    cold_ms: float
    hot_ms: float
    round_trip_ms: float

    @property
    def extra_round_trips(self) -> float:
        """What being cold adds."""
        return (self.cold_ms - self.hot_ms) / self.round_trip_ms


def measure(folder: Path, quick: bool) -> Section:
    """Fills a store step by step; see `benchmarks.section.Measure`."""
    if quick:
        return Section(TITLE, "Left out of a quick run.")
    return grow(folder, SIZES, 1.0)


def grow(folder: Path, sizes: Sequence[int], seconds: float) -> Section:
    """Measures at each size beside a server with few sessions, then with every session cold.

    Args:
        folder: For stores and logs.
        sizes: Stored sessions, ascending.
        seconds: Of each load.
    """
    with ExitStack() as stack, Progress() as progress:
        bar = progress.add_task("", total=3 * len(sizes) + 1)
        few = _Site(stack, folder / "few", FEW)
        few.fill(FEW)
        many = _Site(stack, folder / "many", sizes[-1])
        stages = []
        for size in sizes:
            progress.update(bar, description=f"{size:,} sessions: filling")
            many.fill(size)
            progress.update(bar, description=f"{size:,} sessions: loads", advance=2)
            stages.append(_stage(few, many, seconds))
            progress.advance(bar)
        progress.update(bar, description="every session cold")
        cold, rounds = _cold(stack, folder / "cold", many, seconds)
        progress.advance(bar)
        return _section(stages, cold, rounds, many.key_bytes())


class _Site:
    """A server on a store of its own, and the sessions there.

    Args:
        stack: Ends both.
        folder: For the store and the logs.
        count: Most sessions.
    """

    def __init__(self, stack: ExitStack, folder: Path, count: int) -> None:
        self.store = EmbeddedStore.start(folder)
        stack.callback(self.store.release)
        server = stack.enter_context(ServerProcess(folder, "--store", self.store.url))
        self.contestant = Contestant(HOLDFAST, server.address, server.pid, self.store.pid)
        self.population = Population(MODEL, count)
        self.stored = 0
        self._client = stack.enter_context(redis.Redis.from_url(self.store.url))
        self._empty_bytes = self._used_bytes()

    def fill(self, size: int) -> None:
        """Opens sessions up to `size` and gives each its first token."""
        first = SpreadBatches(self.population, np.arange(self.stored, size), 4, rows=512, once=True)
        load(self.contestant, first, 0.0)
        self.stored = size

    def bytes_per_session(self) -> float:
        return (self._used_bytes() - self._empty_bytes) / self.stored

    def any_key(self) -> bytes:
        key: bytes = self._client.randomkey()
        return key

    def key_bytes(self) -> float:
        return statistics.mean(len(self.any_key()) for _ in range(100))

    def _used_bytes(self) -> int:
        return int(self._client.info("memory")["used_memory"])


def _stage(few: _Site, many: _Site, seconds: float) -> Stage:
    """Takes every load in turns on both servers."""
    footprint = (
        resident_bytes(many.contestant.pid),
        resident_bytes(many.store.pid),
        many.bytes_per_session(),
    )
    labels = list(_loads(many, many.stored))
    rounds: dict[str, list[Round]] = {label: [] for label in labels}
    beside: dict[str, list[Round]] = {label: [] for label in labels}
    for turn in range(ROUNDS):
        for label in labels:
            if turn == 0 or label.startswith(COMPARED):
                beside[label].append(load(few.contestant, _loads(few, FEW)[label], seconds))
                rounds[label].append(load(many.contestant, _loads(many, many.stored)[label], seconds))
    hot_share = min(1.0, Settings().hot_state_bytes / STATE_BYTES / many.stored)
    return Stage(many.stored, hot_share, *footprint, rounds, beside)


def _loads(site: _Site, size: int) -> dict[str, SpreadLoad]:
    everyone, in_use = np.arange(size), np.arange(FEW)
    loads: dict[str, SpreadLoad] = {}
    for used, suffix, counts in ((in_use, f", {FEW:,} in use", (64,)), (everyone, ", all in use", STREAMS)):
        for count in counts:
            loads[f"{count} streams{suffix}"] = SpreadStreams(site.population, used, count)
        loads[f"256 rows x 1{suffix}"] = SpreadBatches(site.population, used, 2, rows=256)
    return loads


def _cold(stack: ExitStack, folder: Path, many: _Site, seconds: float) -> tuple[Cold, dict[str, Round]]:
    """Measures on a second server beside the first, on the same store, that can keep next to nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ("--store", many.store.url, "--hot-state-bytes", str(LITTLE_MEMORY_BYTES))
    server = stack.enter_context(ServerProcess(folder, *flags))
    contestant = Contestant(HOLDFAST, server.address, server.pid, many.store.pid)
    everyone = np.arange(many.stored)

    cold = _runner.run(_by_turns(contestant, many, COLD_TURNS))
    loads = {
        "64 streams, all cold": SpreadStreams(many.population, everyone, 64),
        "256 rows x 1, all cold": SpreadBatches(many.population, everyone, 2, rows=256),
    }
    rounds = {label: load(contestant, spread, seconds) for label, spread in loads.items()}
    return cold, rounds


async def _by_turns(contestant: Contestant, many: _Site, count: int) -> Cold:
    """Cold, hot, read, cold, hot, read: whatever else the machine does falls on all three."""
    store = create_store(many.store.url, timeout_s=1.0)
    await store.open()
    key = many.any_key()
    times_s: list[tuple[float, ...]] = []
    async with grpc.aio.insecure_channel(contestant.address) as channel:
        stub = StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.StreamSteps()

        async def step(number: int) -> None:
            await call.write(pb.StreamStepsRequest(chunk=many.population.chunk(number)))
            reply = await call.read()
            if reply is grpc.aio.EOF or reply.WhichOneof("outcome") != "result":
                raise LoadFailed(f"no result: {reply}")
            many.population.positions[number] += 1

        for number in np.random.default_rng().permutation(many.stored)[:count].tolist():
            begun_s = time.monotonic()
            await step(number)
            cold_s = time.monotonic()
            await step(number)
            hot_s = time.monotonic()
            await store.load([key])
            read_s = time.monotonic()
            times_s.append((cold_s - begun_s, hot_s - cold_s, read_s - hot_s))
        await call.done_writing()
    await store.close()
    return Cold(*(statistics.median(column) * 1e3 for column in zip(*times_s, strict=True)))


def _section(stages: list[Stage], cold: Cold, cold_rounds: dict[str, Round], key_bytes: float) -> Section:
    last = stages[-1]
    size = f"{last.stored:,}"
    stored_bytes = last.bytes_per_session / (STATE_BYTES + RECORD_BYTES + key_bytes)
    ratios = [
        Ratio(f"{size} stored: bytes each over state + {RECORD_BYTES} + key", stored_bytes, at_most=1.3),
        Ratio("a cold session: extra p50 in store round trips", cold.extra_round_trips, at_most=1.2),
    ]
    for label in COMPARED:
        for suffix in (f", {FEW:,} in use", ", all in use"):
            name = f"{label}{suffix}, {size} stored over {FEW:,}"
            speed, cpu = (last.over_few(label + suffix, figure) for figure in ("steps_per_s", "server_us"))
            ratios.append(Ratio(f"{name}: steps/s", speed, at_least=0.85))
            ratios.append(Ratio(f"{name}: server CPU per step", cpu))
    text = "\n\n".join(
        [_introduction(), _footprints(stages), _table(stages), _cold_text(cold, cold_rounds)]
    )
    data = {
        "stages": [
            stage._asdict() | {"rounds": _as_data(stage.rounds), "beside": _as_data(stage.beside)}
            for stage in stages
        ],
        "cold": cold._asdict(),
        "all_cold": {label: turn._asdict() for label, turn in cold_rounds.items()},
    }
    return Section(TITLE, text, ratios, data)


def _as_data(rounds: dict[str, list[Round]]) -> dict[str, list[dict[str, object]]]:
    return {label: [turn._asdict() for turn in turns] for label, turns in rounds.items()}


def _introduction() -> str:
    mib = Settings().hot_state_bytes >> 20
    return (
        "One server on one embedded store, in turns with a server that has few sessions. With `all in use` "
        f"every message goes to other sessions; what fits in {mib} MiB of states is hot, the rest is read."
    )


def _footprints(stages: list[Stage]) -> str:
    lines = ["| stored | hot at most | server MiB | store MiB | bytes each |", "|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {stage.stored:,} | {stage.hot_share:.0%} | {stage.server_bytes / 2**20:,.0f} | "
        f"{stage.store_bytes / 2**20:,.0f} | {stage.bytes_per_session:,.0f} |"
        for stage in stages
    ]
    return "\n".join(lines)


def _table(stages: list[Stage]) -> str:
    over = f"over {FEW:,}"
    header = (
        "stored",
        "load",
        "steps/s",
        over,
        "p50 ms",
        "p99 ms",
        "server us/step",
        over,
        "store us/step",
    )
    lines = [f"| {' | '.join(header)} |", "|---:|---|" + "---:|" * 7]
    lines += [
        f"| {stage.stored:,} | {label} | {' | '.join(_cells(stage, label))} |"
        for stage in stages
        for label in stage.rounds
    ]
    return "\n".join(lines)


def _cells(stage: Stage, label: str) -> list[str]:
    rounds = stage.rounds[label]
    return [
        f"{_median(rounds, 'steps_per_s'):,.0f}",
        f"{stage.over_few(label, 'steps_per_s'):.2f}",
        f"{_median(rounds, 'p50_ms'):.2f}",
        f"{_median(rounds, 'p99_ms'):.2f}",
        f"{_median(rounds, 'server_us'):.1f}",
        f"{stage.over_few(label, 'server_us'):.2f}",
        f"{_median(rounds, 'store_us'):.1f}",
    ]


def _cold_text(cold: Cold, rounds: dict[str, Round]) -> str:
    loads = "; ".join(
        f"{label}: {turn.steps_per_s:,.0f} steps/s, {turn.server_us:.0f} us of server and "
        f"{turn.store_us:.0f} us of store each"
        for label, turn in rounds.items()
    )
    return (
        f"On a server that keeps 64 states a caller alone waits {cold.cold_ms:.3f} ms (p50) for a step "
        f"of a cold session and {cold.hot_ms:.3f} ms for its next one; reading one record from outside, "
        f"by turns with these, takes {cold.round_trip_ms:.3f} ms. {loads}."
    )


def _median(rounds: list[Round], figure: str) -> float:
    return float(statistics.median(getattr(turn, figure) for turn in rounds))


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="stored sessions, ascending")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        section = grow(Path(folder), options.sizes, options.seconds)
    Console(width=160).print(section.text, *section.ratios, sep="\n\n", highlight=False)


if __name__ == "__main__":
    main()
