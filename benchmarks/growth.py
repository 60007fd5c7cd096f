"""Growth: what a million stored sessions cost, beside a thousand.

Three questions: does a step get slower as the store fills, what does an idle session take there, and
what does a session pay whose state is not in the server's memory. A server with a thousand sessions takes
turns with the one that has a million, so that what else the machine does falls on both.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
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
from benchmarks.population import Population, SpreadBatches, SpreadLoad, SpreadStreams, copy_record
from benchmarks.results import HOLDFAST, Round
from benchmarks.section import Ratio, Section
from holdfast.bench.loads import LoadFailed
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc.credentials import DEFAULT_TENANT
from service.settings.schema import Settings
from service.store.embedded import EmbeddedStore
from service.store.keys import session_keys
from service.store.opening import create_store

TITLE = "Growth"
MODEL = "python-source"
STATE_BYTES = 1024
"""GRU-256 in float32."""
RECORD_BYTES = 160
"""What a record may add to state and key, beside the reply it keeps."""
FEW = 1_024
"""Sessions of the server that has few; also the part in use of the many, in some loads."""
SIZE = 1_000_000
STREAMS, ROWS = "64 streams", "256 rows x 1"
IN_USE, ALL_IN_USE = f", {FEW:,} in use", ", all in use"
ROUNDS = 5
COLD_TURNS = 1000
LITTLE_MEMORY_BYTES = 64 * STATE_BYTES
"""Hot states of the server on which every session is cold."""

_runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
"""As the server's loop; never closed, since gRPC delivers what is left of a call to it."""


class Stage(NamedTuple):
    """What was measured with many stored sessions.

    Attributes:
        stored: Sessions in the store.
        hot_share: Part of them that fits in the server's memory.
        server_bytes: Resident memory of the server.
        store_bytes: Resident memory of the store.
        bytes_per_session: What the store's allocator gave out for each, from `used_memory`.
        rounds: By load, with its part in use.
        beside: By load, on the server with few sessions, in the same turns; all of these are in use.
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
        name = label.partition(",")[0]
        return _median(self.rounds[label], figure) / _median(self.beside[name], figure)


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
    """Fills a store; see `benchmarks.section.Measure`."""
    if quick:
        return Section(TITLE, "Left out of a quick run.")
    return grow(folder, SIZE, ROUNDS, 1.0)


def grow(folder: Path, size: int, rounds: int, seconds: float) -> Section:
    """Measures beside a server with few sessions, then with every session cold.

    Args:
        folder: For stores and logs.
        size: Stored sessions.
        rounds: Turns of each load.
        seconds: Of each turn.
    """
    with ExitStack() as stack, Progress() as progress:
        bar = progress.add_task(f"{size:,} sessions: filling", total=rounds + 2)
        few, many = _Site(stack, folder / "few", FEW), _Site(stack, folder / "many", size)
        bytes_per_session = many.bytes_per_session()
        many.use_evenly()
        progress.advance(bar)
        beside: dict[str, list[Round]] = {STREAMS: [], ROWS: []}
        on_many: dict[str, list[Round]] = {
            name + part: [] for name in beside for part in (IN_USE, ALL_IN_USE)
        }
        for _ in range(rounds):
            progress.update(bar, description=f"{size:,} sessions: loads", advance=1)
            for name, turns in beside.items():
                turns.append(few.load(name, FEW, seconds))
                on_many[name + IN_USE].append(many.load(name, FEW, seconds))
                on_many[name + ALL_IN_USE].append(many.load(name, size, seconds))
        memory = [resident_bytes(pid) for pid in (many.contestant.pid, many.store.pid)]
        hot_share = min(1.0, Settings().hot_state_bytes / STATE_BYTES / size)
        stage = Stage(size, hot_share, *memory, bytes_per_session, on_many, beside)
        progress.update(bar, description="every session cold", advance=1)
        cold, all_cold = _cold(stack, folder / "cold", many, seconds)
        return _section(stage, cold, all_cold, many.key_bytes())


class _Site:
    """A server on a store of its own, filled with sessions that have consumed one token.

    The server serves the first of them. Its record is written for the others, which is what a server of
    its kind would have left there, but in seconds; so all others are cold.

    Args:
        stack: Ends both.
        folder: For the store and the logs.
        count: Sessions.
    """

    def __init__(self, stack: ExitStack, folder: Path, count: int) -> None:
        self.store = EmbeddedStore.start(folder)
        stack.callback(self.store.release)
        server = stack.enter_context(ServerProcess(folder, "--store", self.store.url))
        self.contestant = Contestant(HOLDFAST, server.address, server.pid, self.store.pid)
        self.population = Population(MODEL, count)
        self._client = stack.enter_context(redis.Redis.from_url(self.store.url))
        self._empty_bytes = self._used_bytes()
        self._fill()

    def _fill(self) -> None:
        load(self.contestant, SpreadBatches(self.population, np.arange(1), 1, rows=1, once=True), 0.0)
        first, *others = session_keys(DEFAULT_TENANT, map(self.population.id_of, range(self.count)))
        copy_record(self._client, self.store.socket_path, first, others)
        self.population.positions[:] = 1
        self.population.is_open[:] = True

    @property
    def count(self) -> int:
        """Sessions stored."""
        return len(self.population.positions)

    def use_evenly(self) -> None:
        """Steps sessions at random until memory holds as many as it can: as after hours of traffic."""
        hot_count = min(self.count, Settings().hot_state_bytes // STATE_BYTES)
        numbers = np.random.default_rng().permutation(self.count)[:hot_count]
        load(self.contestant, SpreadBatches(self.population, numbers, 2, rows=512, once=True), 0.0)

    def load(self, name: str, in_use: int, seconds: float) -> Round:
        """Takes a turn of one of the two loads, over the first sessions."""
        numbers = np.arange(in_use)
        loop: SpreadLoad = (
            SpreadStreams(self.population, numbers, 64)
            if name == STREAMS
            else SpreadBatches(self.population, numbers, 2, rows=256)
        )
        return load(self.contestant, loop, seconds)

    def bytes_per_session(self) -> float:
        return (self._used_bytes() - self._empty_bytes) / self.count

    def any_key(self) -> bytes:
        key: bytes = self._client.randomkey()
        return key

    def key_bytes(self) -> float:
        return statistics.mean(len(self.any_key()) for _ in range(100))

    def _used_bytes(self) -> int:
        return int(self._client.info("memory")["used_memory"])


def _cold(stack: ExitStack, folder: Path, many: _Site, seconds: float) -> tuple[Cold, dict[str, Round]]:
    """Measures on a second server beside the first, on the same store, that can keep next to nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ("--store", many.store.url, "--hot-state-bytes", str(LITTLE_MEMORY_BYTES))
    server = stack.enter_context(ServerProcess(folder, *flags))
    contestant = Contestant(HOLDFAST, server.address, server.pid, many.store.pid)
    everyone = np.arange(many.count)

    cold = _runner.run(_by_turns(contestant, many, COLD_TURNS))
    loads = {
        f"{STREAMS}, all cold": SpreadStreams(many.population, everyone, 64),
        f"{ROWS}, all cold": SpreadBatches(many.population, everyone, 2, rows=256),
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

        for number in np.random.default_rng().permutation(many.count)[:count].tolist():
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


def _section(stage: Stage, cold: Cold, all_cold: dict[str, Round], key_bytes: float) -> Section:
    size = f"{stage.stored:,}"
    stored_bytes = stage.bytes_per_session / (STATE_BYTES + RECORD_BYTES + key_bytes)
    ratios = [
        Ratio(f"{size} stored: bytes each over state + {RECORD_BYTES} + key", stored_bytes, at_most=1.3),
        Ratio("a cold session: extra p50 in store round trips", cold.extra_round_trips, at_most=1.2),
    ]
    for label in stage.rounds:
        name = f"{label}, {size} stored over {FEW:,}"
        speed, cpu = (stage.over_few(label, figure) for figure in ("steps_per_s", "server_us"))
        if label.endswith(IN_USE):
            ratios.append(Ratio(f"{name}: steps/s", speed, at_least=0.85))
        ratios.append(Ratio(f"{name}: server CPU per step", cpu))
    goals = [
        Ratio(
            f"{name}, {size} stored and all in use over {FEW:,} in use: steps/s",
            stage.over_few(name + ALL_IN_USE, "steps_per_s"),
            at_least=floor,
        )
        for name, floor in ((ROWS, 0.7), (STREAMS, 0.9))
    ]
    text = "\n\n".join([_introduction(stage), _table(stage), _cold_text(cold, all_cold)])
    data = {
        "stage": stage._asdict() | {"rounds": _as_data(stage.rounds), "beside": _as_data(stage.beside)},
        "cold": cold._asdict(),
        "all_cold": {label: turn._asdict() for label, turn in all_cold.items()},
    }
    return Section(TITLE, text, ratios, data, goals=goals)


def _as_data(rounds: dict[str, list[Round]]) -> dict[str, list[dict[str, object]]]:
    return {label: [turn._asdict() for turn in turns] for label, turns in rounds.items()}


def _introduction(stage: Stage) -> str:
    mib = Settings().hot_state_bytes >> 20
    return (
        f"A server with {stage.stored:,} sessions on an embedded store, in turns with one with {FEW:,}. "
        f"With `all in use` every message goes to other sessions, at random; {mib} MiB of states are hot, "
        f"at most {stage.hot_share:.0%} of them, the rest is read. The store takes "
        f"{stage.bytes_per_session:,.0f} bytes for each session; in the end it has "
        f"{stage.store_bytes / 2**20:,.0f} MiB and the server {stage.server_bytes / 2**20:,.0f}."
    )


def _table(stage: Stage) -> str:
    header = (
        *("load", "stored", "steps/s", f"over {FEW:,}", "p50 ms", "p99 ms"),
        *("server us/step", f"over {FEW:,}", "store us/step", "load us/step"),
    )
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for name, rounds in stage.beside.items():
        lines.append(_line(name + IN_USE, FEW, rounds))
        lines += [
            _line(label, stage.stored, rounds, stage)
            for label, rounds in stage.rounds.items()
            if label.startswith(name)
        ]
    return "\n".join(lines)


def _line(label: str, stored: int, rounds: list[Round], stage: Stage | None = None) -> str:
    speed, cpu = (
        "" if stage is None else f"{stage.over_few(label, figure):.2f}"
        for figure in ("steps_per_s", "server_us")
    )
    cells = (
        label,
        f"{stored:,}",
        f"{_median(rounds, 'steps_per_s'):,.0f}",
        speed,
        f"{_median(rounds, 'p50_ms'):.2f}",
        f"{_median(rounds, 'p99_ms'):.2f}",
        f"{_median(rounds, 'server_us'):.1f}",
        cpu,
        f"{_median(rounds, 'store_us'):.1f}",
        f"{_median(rounds, 'load_us'):.1f}",
    )
    return f"| {' | '.join(cells)} |"


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
    parser.add_argument("--size", type=int, default=SIZE, help="stored sessions")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        section = grow(Path(folder), options.size, options.rounds, options.seconds)
    Console(width=160).print(section.text, *section.ratios, *section.goals, sep="\n\n", highlight=False)


if __name__ == "__main__":
    main()
