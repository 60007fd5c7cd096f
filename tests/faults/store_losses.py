"""What a store loses: `python -m tests.faults.store_losses --rounds N`, the table of `operate/faults.md`.

In each round 16 sessions are stepped at one acknowledgement level, on a store with one policy of its
append-only file, until something is killed. Then the records are read in what is left of the store, started
again from its files or promoted, and held against the replies: an acknowledged token that is not in its
session's record is lost. What may be lost is what the table in docs/operate/durability.md says.

A killed process leaves the system's memory as it is. So this says nothing about a machine that loses power:
that would need a file system or a block device that forgets what was not synced.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from holdfast.client.status import from_rpc
from holdfast.history_digest import INITIAL, run_of
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.store.embedded import find_binary
from service.store.keys import session_key
from service.store.record import decode
from tests.faults.loss_table import BEHIND, FULL, HOLDFAST, KILLED, LEFT, SAVED, SLOW, wrong_in
from tests.nemesis import processes
from tests.nemesis.proxy import FaultProxy
from tests.nemesis.store import append_only_file
from tests.nemesis.threads import can_stop_threads, stopped_thread
from tests.support.models import write_hash_model
from tests.support.opening import open_sessions_async
from tests.support.server import ServerProcess, get
from tests.support.store_process import StoreProcess, free_port
from tests.support.waiting import wait_for

MODEL = "hash"
SESSIONS = 16
LEVELS = {
    "memory": pb.ACK_LEVEL_MEMORY,
    "fsynced": pb.ACK_LEVEL_FSYNCED,
    "replicated": pb.ACK_LEVEL_REPLICATED,
    "fsynced+replicated": pb.ACK_LEVEL_FSYNCED_AND_REPLICATED,
}
QUIET_S = 0.25
"""A longer pause without any reply is no time in which the store acknowledged: it does not count as age."""


@dataclass(frozen=True)
class Case:
    """A level, a policy of the append-only file ("off": there is none), and what happens."""

    level: str
    policy: str
    event: str
    kind: str = "valkey"

    @property
    def has_replica(self):
        return "replicated" in self.level or self.event in (LEFT, BEHIND)


CASES = (
    *(Case("memory", policy, HOLDFAST) for policy in ("everysec", "off")),
    *(Case("memory", policy, KILLED) for policy in ("always", "everysec", "no", "off")),
    *(Case("memory", policy, SLOW) for policy in ("everysec", "no")),
    *(Case("memory", policy, FULL) for policy in ("always", "everysec", "no")),
    Case("memory", "off", SAVED),
    *(Case("memory", "everysec", event) for event in (LEFT, BEHIND)),
    *(Case("fsynced", "always", event) for event in (HOLDFAST, KILLED, FULL, BEHIND)),
    *(Case("replicated", "everysec", event) for event in (KILLED, SLOW, LEFT, BEHIND)),
    *(Case("replicated", policy, BEHIND) for policy in ("always", "no", "off")),
    *(Case("fsynced+replicated", "always", event) for event in (KILLED, LEFT, BEHIND)),
    *(Case("memory", policy, KILLED, "redis") for policy in ("always", "everysec", "no")),
    *(Case("memory", policy, SLOW, "redis") for policy in ("everysec", "no")),
    *(Case("memory", policy, FULL, "redis") for policy in ("always", "everysec", "no")),
    Case("replicated", "everysec", BEHIND, "redis"),
)


@dataclass
class Loss:
    """What was lost in a round, or at most in several.

    Attributes:
        acknowledged: Tokens.
        tokens: Acknowledged tokens that are gone.
        age_s: For how long before the end the oldest of them had been acknowledged.
        is_younger_than_snapshot: Whether all of it is, where there was one.
        rounds: How many.
        lossy_rounds: How many of them lost something.
    """

    acknowledged: int
    tokens: int
    age_s: float
    is_younger_than_snapshot: bool = True
    rounds: int = 1
    lossy_rounds: int = 0

    def __add__(self, other):
        return Loss(
            self.acknowledged + other.acknowledged,
            max(self.tokens, other.tokens),
            max(self.age_s, other.age_s),
            self.is_younger_than_snapshot and other.is_younger_than_snapshot,
            self.rounds + other.rounds,
            self.lossy_rounds + other.lossy_rounds,
        )


class Load:
    """Sessions that are stepped until the store fails, and what was acknowledged of them."""

    def __init__(self, stub, names, level, rng):
        self._stub, self._level, self._rng = stub, level, rng
        self._sent = dict.fromkeys(names, b"")
        self._replies = {name: [] for name in names}  # when, and the position
        self.may_end = False

    async def start(self):
        """Opens the sessions, and returns once each has a reply."""
        await open_sessions_async(self._stub, self._sent, MODEL)
        self._tasks = [asyncio.create_task(self._step(name)) for name in self._sent]
        async with asyncio.timeout(30):
            while not all(self._replies.values()):
                assert not any(task.done() for task in self._tasks), self._tasks
                await asyncio.sleep(0.01)

    async def go_on(self):
        """Waits until there are as many new replies as there are sessions."""
        count = self._count()
        async with asyncio.timeout(30):
            while self._count() < count + SESSIONS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def end(self):
        """Waits until every session has failed."""
        await asyncio.gather(*self._tasks)

    def compare(self, records, ended_s, snapshot_s=0.0):
        """Holds records, as they are stored, against the replies; `ended_s`: when the store ended."""
        tokens, lost_s = 0, []
        for name, replies in self._replies.items():
            stored = decode(records[name]) if records[name] is not None else None
            position = stored.position if stored else 0
            if stored:
                told = self._sent[name][:position]
                assert stored.digest == (run_of(told).after(INITIAL) if told else INITIAL), name
            tokens += max(0, replies[-1][1] - position)
            lost_s += [at_s for at_s, acknowledged in replies if acknowledged > position]
        acknowledged = sum(replies[-1][1] for replies in self._replies.values())
        if not tokens:
            return Loss(acknowledged, 0, 0.0)
        first_s = min(lost_s)
        times = sorted(at_s for replies in self._replies.values() for at_s, _ in replies if at_s >= first_s)
        pauses = [after - before for before, after in itertools.pairwise([*times, max(ended_s, times[-1])])]
        quiet_s = sum(pause for pause in pauses if pause > QUIET_S)
        age_s = max(0.0, ended_s - first_s - quiet_s)
        return Loss(acknowledged, tokens, age_s, first_s >= snapshot_s, lossy_rounds=1)

    def _count(self):
        return sum(map(len, self._replies.values()))

    async def _step(self, name):
        while True:
            position = len(self._sent[name])
            tokens = self._rng.randbytes(self._rng.randint(1, 3))
            self._sent[name] += tokens
            chunk = pb.Chunk(
                session_id=name, tokens=pb.Tokens(text=tokens), position=position,
                acknowledged_position=position, ack_level=self._level,
            )  # fmt: skip
            result = await self._result_of(chunk)
            if result is None:
                return
            assert (result.position, result.ack_level) == (position + len(tokens), self._level)
            self._replies[name].append((time.monotonic(), result.position))

    async def _result_of(self, chunk):
        """Sends a chunk until it has its reply; returns None once it fails though the sessions may end."""
        while True:
            try:
                return (await self._stub.Step(pb.StepRequest(chunk=chunk), timeout=10)).result
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure)
                if not error.retryable:
                    raise error from None
            if self.may_end:
                return None
            await asyncio.sleep(
                0.05
            )  # a new store confirms nothing of the connections to the one before it


class Losses:
    """A server, and a store of a round's kind behind one port. A context manager.

    Args:
        folder: For all files.
        rng: Draws.
        slow_s: For how long no sync ends before a store is killed, from and to. A write is held back for
            two seconds at most, and for one at least.

    Attributes:
        can_slow: Whether a store's syncs can be stopped here.
    """

    def __init__(self, folder, rng, slow_s=(0.3, 3.7)):
        self._folder, self._rng, self._slow_s = folder, rng, slow_s
        self._numbers = itertools.count()
        self._port = free_port()
        self._server = None
        self.can_slow = can_stop_threads()

    def __enter__(self):
        write_hash_model(self._folder / "models" / MODEL / "1" / "model.onnx")
        return self

    def __exit__(self, *_):
        if self._server is not None:
            self._server.stop()

    async def round(self, case):
        """Returns what is lost in one round."""
        number = next(self._numbers)
        folder = self._folder / f"round-{number}"
        folder.mkdir()
        options = {"appendonly": "no"} if case.policy == "off" else {"appendfsync": case.policy}
        options["binary"] = find_binary() if case.kind == "valkey" else shutil.which("redis-server")
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(StoreProcess(folder / "store", port=self._port, **options))
            replica = link = None
            if case.has_replica:
                replica = stack.enter_context(StoreProcess(folder / "replica", **options))
                link = stack.enter_context(FaultProxy(f"127.0.0.1:{store.port}"))
                replica.client.replicaof("127.0.0.1", int(link.address.rpartition(":")[2]))
                wait_for(lambda: replica.client.info("replication")["master_link_status"] == "up")
            self._serve(store)
            async with grpc.aio.insecure_channel(self._server.address) as channel:
                names = [f"{number}-{one}" for one in range(SESSIONS)]
                stub = StreamingInferenceServiceStub(channel)
                load = Load(stub, names, LEVELS[case.level], random.Random(self._rng.random()))
                await load.start()
                await asyncio.sleep(self._rng.uniform(0.1, 0.6))
                load.may_end = True
                snapshot_s, ended_s = await self._break(case, load, store, link)
                await load.end()
            left = store
            if case.event in (LEFT, BEHIND):
                replica.client.replicaof("no", "one")
                left = replica
            elif case.event != HOLDFAST:
                store.start()
            records = {name: left.client.get(session_key("default", name)) for name in names}
        shutil.rmtree(folder)
        return load.compare(records, ended_s, snapshot_s)

    def _serve(self, store):
        if self._server is None:
            flags = ["--store", store.url, "--models", str(self._folder / "models"), "--ack-timeout-s", "1"]
            flags += ["--replicas-required", "1", "--allow-volatile-store", "--allow-old-store"]
            self._server = ServerProcess(self._folder / "data", *flags)
        wait_for(lambda: get(self._server, "/readyz")[0] == 200)

    async def _break(self, case, load, store, link):
        """Breaks something; returns when a snapshot began, else 0, and when the store or server ended."""
        snapshot_s, event = 0.0, case.event
        if event == HOLDFAST:
            ended_s = time.monotonic()
            self._server.kill()
            self._server = None
            return snapshot_s, ended_s
        if event == SLOW:
            with stopped_thread(store.pid, "bio_aof"):
                if case.policy == "everysec":
                    async with asyncio.timeout(10):
                        while not store.client.info("persistence")["aof_pending_bio_fsync"]:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                await asyncio.sleep(self._rng.uniform(*self._slow_s))
                ended_s = time.monotonic()
                processes.kill(store.pid)
        elif event == FULL:
            processes.limit_file_size(store.pid, append_only_file(store.folder).stat().st_size)
            await load.end()
            ended_s = time.monotonic()
        elif event == SAVED:
            snapshot_s = time.monotonic()
            store.client.save()
            await load.go_on()
            ended_s = time.monotonic()
        elif event == BEHIND:
            link.to_client.is_black_hole = True
            if "replicated" not in case.level:
                await load.go_on()
            await asyncio.sleep(self._rng.uniform(0.2, 0.8))
            link.cut()
            link.is_refusing = True
            ended_s = time.monotonic()
        else:
            ended_s = time.monotonic()
        store.kill()
        return snapshot_s, ended_s


async def run(folder, rounds, rng, report):
    """Runs every case that can be had here so often, in turns; returns the losses by case."""
    has_redis = shutil.which("redis-server") is not None
    found = {}
    with Losses(folder, rng) as losses:
        cases = [case for case in CASES if has_redis or case.kind != "redis"]
        cases = [case for case in cases if losses.can_slow or case.event != SLOW]
        for number in range(rounds):
            for case in cases:
                loss = await losses.round(case)
                found[case] = found[case] + loss if case in found else loss
            report(f"round {number + 1} of {rounds}")
    return found


def table(found):
    """Returns the losses as lines of a table."""
    lines = [
        "| level | policy | what happens | store | rounds | tokens | lossy | lost, most | oldest, s |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for case, loss in found.items():
        lines.append(
            f"| `{case.level}` | `{case.policy}` | {case.event} | {case.kind} | {loss.rounds} "
            f"| {loss.acknowledged:,} | {loss.lossy_rounds} | {loss.tokens:,} | {loss.age_s:.2f} |"
        )
    return lines


def main(arguments):
    """Runs the command; returns 0 if nothing was lost that may not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.store_losses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of every case (10)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="store-losses-") as folder:
        rng = random.Random(options.seed)
        report = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        found = asyncio.run(run(Path(folder), options.rounds, rng, report))
    print("\n".join(table(found)))
    wrong = [text for case, loss in found.items() for text in wrong_in(case, loss)]
    for text in wrong:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
