"""`make bench-scale`: replicas that hold nothing, on a cluster that shards the state and loses a node.

Four replicas and a cluster of three primaries with a replica each, all real processes of this machine. They
share its cores, so steps per second do not grow with the replicas here; what carries over to machines of
their own is the CPU time per token.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.contestants import cpu_s, family
from benchmarks.population import Population, SpreadBatches
from holdfast import AsyncClient
from holdfast.bench.loads import CHANNEL_OPTIONS, ClosedLoop, LoadFailed, batches, opening, streams
from holdfast.bench.payload import Payload
from holdfast.cli.verify import summary, to_json
from holdfast.client.history import Recorder
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from holdfast.verify.judge import Verdict, judge
from holdfast.verify.load import Load, LoadSettings
from service.settings.schema import Settings
from tests.support.server import get
from tests.support.stores import Deployment, deploy_cluster
from tests.support.waiting import wait_for

MODEL = "python-source"
REPLICA_COUNTS = (1, 2, 4)
NODE_TIMEOUT_MS = 2000
"""Silence after which the cluster holds a node to be down."""
STORE_TIMEOUT_S = "5"
"""Ten processes on few cores are silent for long without being dead."""
STREAMS = 64
"""Per replica: the load grows with the replicas, or each would have less to put into a batch."""
MESSAGES, ROWS = 2, 256
"""Messages under way per replica, and sessions in each."""
SAMPLE = 200
"""Sessions that are taken from replica to replica."""
WRITERS = 64
"""Sessions that are written and judged while a node is killed."""

_RESULTS = Path(__file__).parent / "results"


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        sessions: Spread over the nodes.
        rounds: Turns of each load on each number of replicas.
        seconds: Of each turn.
        failover_seconds: Of the load that is judged; the node is killed after a third.
    """

    sessions: int = 30_000
    rounds: int = 3
    seconds: float = 2.0
    failover_seconds: float = 15.0


class Node(NamedTuple):
    """A primary of the cluster.

    Attributes:
        sessions: Stored there.
        used_bytes: What its allocator gave out.
    """

    sessions: int
    used_bytes: int


class Moves(NamedTuple):
    """Sessions that are taken from replica to replica, two steps on each, alone on the machine.

    Attributes:
        steps: All of them, each answered at its position.
        moved_ms: p50 of the first step on a replica that has not seen the session.
        stayed_ms: p50 of the next one there.
    """

    steps: int
    moved_ms: float
    stayed_ms: float


class Turn(NamedTuple):
    """A load on some replicas for a while; CPU is that of all of a kind, microseconds per token."""

    steps_per_s: float
    p50_ms: float
    p99_ms: float
    replicas_us: float
    stores_us: float
    load_us: float


class FailOver(NamedTuple):
    """What came of killing a primary under load.

    Attributes:
        promoted_s: From the kill until its replica is a primary.
        ready_s: From the kill until every replica of Holdfast is ready again.
        replies: During the load.
        errors: That writers saw and sent again after, by reason.
        verdict: Over all that they recorded.
    """

    promoted_s: float
    ready_s: float
    replies: int
    errors: dict[str, int]
    verdict: Verdict


class Found(NamedTuple):
    """All that was measured; `turns` by load and number of replicas."""

    nodes: list[Node]
    moves: Moves
    turns: dict[tuple[str, int], list[Turn]]
    fail_over: FailOver


class Site:
    """The replicas and their cluster.

    Args:
        stack: Ends them.
        folder: For files and logs.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.cluster: Deployment = stack.enter_context(
            deploy_cluster(
                "valkey", folder / "cluster", node_timeout_ms=NODE_TIMEOUT_MS, fenced=False, replicas=1
            )
        )
        flags = ("--store", self.cluster.url, "--store-timeout-s", STORE_TIMEOUT_S)
        self.replicas = [
            stack.enter_context(ServerProcess(folder / f"replica-{number}", *flags))
            for number in range(max(REPLICA_COUNTS))
        ]

    def replicas_cpu_s(self) -> float:
        """Returns the CPU seconds of all replicas so far."""
        return sum(cpu_s(pid) for replica in self.replicas for pid in family(replica.pid))

    def stores_cpu_s(self) -> float:
        """Returns the CPU seconds of all nodes of the cluster so far."""
        return sum(cpu_s(node.pid) for node in self.cluster.processes)

    def nodes(self) -> list[Node]:
        """Looks at the primaries, in the order of their slots."""
        infos = [node.info() for node in self.cluster.processes[:3]]
        return [Node(info["db0"]["keys"], info["used_memory"]) for info in infos]


async def scale(site: Site, folder: Path, plan: Plan) -> Found:
    """Measures everything, one thing after the other."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(replica.address, options=CHANNEL_OPTIONS)
            )
            for replica in site.replicas
        ]
        stubs = [StreamingInferenceServiceStub(channel) for channel in channels]
        population = Population(MODEL, plan.sessions)
        await _open(population, stubs)
        nodes = site.nodes()
        moves = await _move(population, stubs)
        turns = await _turns(site, stubs, plan)
    return Found(nodes, moves, turns, await _fail_over(site, folder, plan.failover_seconds))


async def _open(population: Population, stubs: Sequence[Any]) -> None:
    """Opens every session and gives it its first token, a share of them through each replica."""
    for numbers, stub in zip(
        np.array_split(np.arange(len(population.positions)), len(stubs)), stubs, strict=True
    ):
        first = SpreadBatches(population, numbers, 2, rows=512, once=True)
        await first.open([stub])
        await first.run([stub], 0.0)


async def _move(population: Population, stubs: Sequence[Any]) -> Moves:
    numbers = np.random.default_rng().permutation(len(population.positions))[:SAMPLE].tolist()
    moved_s, stayed_s = [], []
    for number, stub in itertools.product(numbers, stubs):
        moved_s.append(await _step(population, number, stub))
        stayed_s.append(await _step(population, number, stub))
    medians_ms = (statistics.median(times_s) * 1e3 for times_s in (moved_s, stayed_s))
    return Moves(len(moved_s) + len(stayed_s), *medians_ms)


async def _step(population: Population, number: int, stub: Any) -> float:
    """Takes a session one token on; returns the seconds."""
    sent_s = time.monotonic()
    reply = await stub.Step(pb.StepRequest(chunk=population.chunk(number)))
    took_s = time.monotonic() - sent_s
    population.positions[number] += 1
    if reply.result.position != population.positions[number]:
        raise LoadFailed(f"session {number:x} stands at {reply.result.position}")
    return took_s


async def _turns(site: Site, stubs: Sequence[Any], plan: Plan) -> dict[tuple[str, int], list[Turn]]:
    """Loads 1, 2 and all replicas in turns."""
    async with AsyncClient(site.replicas[0].address) as client:
        payload = Payload(await client.get_model(MODEL))
    loads = {}
    for count in REPLICA_COUNTS:
        loads[f"{STREAMS} streams", count] = ClosedLoop(
            f"streams-{count}", STREAMS * count, streams(payload), opening=opening(payload)
        )
        loads[f"{MESSAGES} messages of {ROWS} rows", count] = ClosedLoop(
            f"rows-{count}", MESSAGES * count, batches(payload, 1), rows=ROWS, opening=opening(payload)
        )
    turns: dict[tuple[str, int], list[Turn]] = {key: [] for key in loads}
    for _ in range(plan.rounds):
        for (label, count), loop in loads.items():
            turns[label, count].append(await _turn(site, loop, stubs[:count], plan.seconds))
    return turns


async def _turn(site: Site, loop: ClosedLoop, stubs: Sequence[Any], seconds: float) -> Turn:
    await loop.open(stubs)
    before = site.replicas_cpu_s(), site.stores_cpu_s(), time.process_time()
    took = await loop.run(stubs, seconds)
    after = site.replicas_cpu_s(), site.stores_cpu_s(), time.process_time()
    costs_us = [(end - begin) / took.step_count * 1e6 for begin, end in zip(before, after, strict=True)]
    return Turn(took.steps_per_s, *took.percentiles_ms()[:2], *costs_us)


async def _fail_over(site: Site, folder: Path, seconds: float) -> FailOver:
    """Kills a primary while sessions are written through all replicas, and judges what they were told."""
    history = folder / "scale.history"
    recorder = Recorder(history)
    addresses = itertools.cycle(replica.address for replica in site.replicas)
    async with AsyncClient(site.replicas[0].address) as client:
        model = await client.get_model(MODEL)
    load = Load(
        lambda: next(addresses), model, recorder, random.Random(), LoadSettings(WRITERS), prefix="judged"
    )
    writing = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(seconds / 3)
        promoted_s, ready_s = await asyncio.to_thread(_kill, site)
        await asyncio.sleep(seconds * 2 / 3)
        load.stop()
        await writing
        replies = load.good_count
        await load.look()
    finally:
        recorder.close()
    verdict = await asyncio.to_thread(judge, [history], Settings().models)
    return FailOver(promoted_s, ready_s, replies, dict(load.errors), verdict)


def _kill(site: Site) -> tuple[float, float]:
    """Kills the first primary; returns the seconds until its replica serves and all of ours are ready."""
    victim, successor = site.cluster.processes[0], site.cluster.processes[3]
    victim.kill()
    killed_s = time.monotonic()
    wait_for(lambda: successor.call("ROLE")[0] == b"master", 60, "the replica was not promoted")
    promoted_s = time.monotonic() - killed_s
    for replica in site.replicas:
        wait_for(lambda replica=replica: get(replica, "/readyz")[0] == 200, 60, "not ready again")
    site.cluster.processes.remove(victim)
    return promoted_s, time.monotonic() - killed_s


def document(found: Found) -> dict[str, Any]:
    """Returns everything as JSON takes it."""
    fail_over = found.fail_over._asdict() | {"verdict": to_json(found.fail_over.verdict)}
    return {
        "nodes": [node._asdict() for node in found.nodes],
        "moves": found.moves._asdict(),
        "turns": [
            {"load": label, "replicas": count, "rounds": [turn._asdict() for turn in turns]}
            for (label, count), turns in found.turns.items()
        ],
        "fail_over": fail_over,
    }


def markdown(found: Found, facts: dict[str, str | int | float]) -> str:
    """Writes the report."""
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts = ["# Scale", "Written by `make bench-scale`.", listed]
    parts += ["## Replicas", _throughput(found.turns, facts["cores"])]
    parts += ["## Sessions over the nodes", _spread(found.nodes)]
    parts += ["## Any replica takes any session", _moved(found.moves)]
    parts += ["## A node is killed", _survived(found.fail_over)]
    return "\n\n".join(parts) + "\n"


def _throughput(turns: dict[tuple[str, int], list[Turn]], cores: str | float) -> str:
    header = (
        "load per replica",
        "replicas",
        "steps/s",
        "p50 ms",
        "p99 ms",
        "replicas us/token",
        "stores us/token",
        "load us/token",
    )
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * 7]
    for (label, count), rounds in sorted(turns.items()):
        speed, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
        cells = [label, f"{count}", f"{speed:,.0f}", *(f"{other:.1f}" for other in others)]
        lines.append(f"| {' | '.join(cells)} |")
    text = (
        f"Medians of the rounds, in turns. Replicas, stores and load share {cores} cores, so steps/s "
        "cannot grow with the replicas. What carries over to cores of their own is CPU per token: where it "
        "stays the same, twice the replicas take twice the tokens."
    )
    return text + "\n\n" + "\n".join(lines)


def _spread(nodes: list[Node]) -> str:
    total = sum(node.sessions for node in nodes)
    lines = [
        f"{total:,} sessions, opened through all replicas; each primary has a third of the slots.",
        "",
        "| primary | sessions | of all | memory MiB |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {number} | {node.sessions:,} | {node.sessions / total:.1%} | {node.used_bytes / 2**20:.1f} |"
        for number, node in enumerate(nodes, 1)
    ]
    return "\n".join(lines)


def _moved(moves: Moves) -> str:
    return (
        f"{SAMPLE} sessions went from replica to replica, two steps on each: {moves.steps:,} steps, each "
        f"answered at its position. The first step on another replica takes {moves.moved_ms:.2f} ms (p50, "
        f"a caller alone), the next one there {moves.stayed_ms:.2f} ms."
    )


def _survived(fail_over: FailOver) -> str:
    total = fail_over.verdict.total
    errors = ", ".join(f"{reason} {count}" for reason, count in sorted(fail_over.errors.items())) or "none"
    return (
        f"{WRITERS} sessions were written through all replicas while one of three primaries was killed. "
        f"Its replica was promoted after {fail_over.promoted_s:.1f} s (the node timeout is "
        f"{NODE_TIMEOUT_MS / 1000:g} s), all replicas of Holdfast were ready after "
        f"{fail_over.ready_s:.1f} s. {fail_over.replies:,} replies; {total.tokens:,} tokens run again by "
        f"onnxruntime alone. Errors that a writer saw and sent again after: {errors}.\n\n"
        f"`{summary(total)}`"
    )


def main() -> int:
    """Measures, prints the report and writes it; 1 if the promise did not hold."""
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of scale.md and scale.json")
    parser.add_argument("--quick", action="store_true", help="about half a minute")
    options = parser.parse_args()
    plan = Plan(2_000, 1, 1.0, 9.0) if options.quick else Plan()
    facts: dict[str, str | int | float] = {"cores": os.cpu_count() or 0, **plan._asdict()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
        found = asyncio.run(scale(Site(stack, folder), folder, plan))
    text = markdown(found, facts)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scale.md").write_text(text)
    (options.out / "scale.json").write_text(
        json.dumps({"facts": facts, **document(found)}, indent=1) + "\n"
    )
    Console(width=None if sys.stdout.isatty() else 160).print(Markdown(text))
    return 0 if found.fail_over.verdict.is_good and found.fail_over.verdict.total.tokens else 1


if __name__ == "__main__":
    sys.exit(main())
