"""Which contestant takes which load, and the turns they take: A B A B, so a slow minute hits all alike."""

from collections.abc import Callable
from functools import partial

import grpc
from rich.progress import Progress, TimeRemainingColumn

from benchmarks.ceilings import IDLE_PAUSE_S, PIPELINE, bare, commits, store_writes
from benchmarks.contestants import MODEL_FILE, Contestant, Field
from benchmarks.graphs import open_graph
from benchmarks.loads import load
from benchmarks.peers.triton import loads as triton_loads
from benchmarks.peers.triton.environment import TritonUnavailable
from benchmarks.peers.triton.server import TritonServer
from benchmarks.results import (
    ONE_COMMIT,
    ONE_COMMIT_IDLE,
    ONE_RUN_IDLE,
    ONNXRUNTIME,
    STORE,
    TRITON,
    Label,
    Results,
    Round,
)
from holdfast.bench.loads import ClosedLoop, LoadFailed, OpenCall, batches, opening, streams, unary
from holdfast.bench.payload import Payload
from holdfast.v1 import holdfast_pb2 as pb

BATCHES_UNDER_WAY = 2
"""Batches under way at once, each with sessions of its own."""

_SHARE_OF_CEILINGS = 1 / 3
"""Of a turn's time: what runs alone, on one thread, settles sooner."""

_WARM_UP_S = 1.0


class TurnFailed(Exception):
    """A contestant could not take its turn; the message is one line for the report."""


Turn = Callable[[float], Round]
Turns = dict[Label, Turn]


def take_turns(turns: Turns, count: int, seconds: float) -> Results:
    """Runs every turn once to warm up and fill caches, then `count` times."""
    rounds: dict[Label, list[Round]] = {label: [] for label in turns}
    failures: dict[Label, list[str]] = {label: [] for label in turns}
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=(count + 1) * len(turns))
        for number in range(count + 1):
            for label, take in turns.items():
                progress.update(task, description=f"{label.contestant}, {label.load}")
                try:
                    turn = take(seconds if number else min(_WARM_UP_S, seconds))
                except TurnFailed as failure:
                    failures[label].append(str(failure))
                else:
                    rounds[label] += [turn] if number else []
                progress.advance(task)
    return Results(rounds, failures)


def all_turns(field: Field) -> Turns:
    """Returns the turns in the order of the report, so that neighbours can be compared."""
    one_each, call_each = streams(payload()), unary(payload())
    holdfast, echo, plain = field.holdfast, field.echo, field.plain
    workers = [field.workers] if field.workers else []
    alone = open_graph(MODEL_FILE)
    return (
        loaded("1 stream", one_each, 1, holdfast, echo)
        | loaded("64 streams", one_each, 64, holdfast, echo)
        | _triton("64 streams", triton_loads.streams, 64, field.triton)
        | loaded("256 streams", one_each, 256, holdfast)
        | _triton("256 streams", triton_loads.streams, 256, field.triton)
        | loaded("64 unary callers", call_each, 64, holdfast, *workers, echo)
        | _triton("64 unary callers", triton_loads.unary, 64, field.triton)
        | loaded("256 unary callers", call_each, 256, holdfast, plain)
        | in_batches(256, 1, holdfast, echo)
        | _bare(256, 1)
        | in_batches(64, 16, holdfast, echo)
        | _bare(64, 16)
        | _bare(1, 1)
        | {Label(ONE_RUN_IDLE, ONNXRUNTIME): _short(partial(bare, alone, 1, 1, pause_s=IDLE_PAUSE_S))}
        | _bare(8, 1)
        | _bare(64, 1)
        | {Label(f"pipelines of {PIPELINE} SETs", STORE): _short(partial(store_writes, field.store))}
        | {Label(ONE_COMMIT, STORE): _short(partial(commits, field.store))}
        | {Label(ONE_COMMIT_IDLE, STORE): _short(partial(commits, field.store, pause_s=IDLE_PAUSE_S))}
    )


def batches_name(rows: int, tokens_per_row: int) -> str:
    """Names the load of batches, and that of onnxruntime alone beside it."""
    return f"{rows} {'row' if rows == 1 else 'rows'} x {tokens_per_row}"


def payload() -> Payload:
    """Returns what every load sends."""
    return Payload(pb.Model(name="python-source", vocabulary=pb.Vocabulary(size=256, is_bytes=True)))


def loaded(
    name: str,
    open_call: OpenCall,
    count: int,
    *contestants: Contestant,
    rows: int = 1,
    tokens_per_row: int = 1,
) -> Turns:
    """Returns the turns of contestants that take one load, one after the other."""
    turns: Turns = {}
    for contestant in contestants:
        sessions = f"{contestant.name} {name}"
        loop = ClosedLoop(
            sessions,
            count,
            open_call,
            rows=rows,
            tokens_per_row=tokens_per_row,
            opening=opening(payload()),
        )
        turns[Label(name, contestant.name)] = partial(load, contestant, loop)
    return turns


def in_batches(rows: int, tokens_per_row: int, *contestants: Contestant) -> Turns:
    """Returns those of a load of batch messages."""
    name, open_call = batches_name(rows, tokens_per_row), batches(payload(), tokens_per_row)
    return loaded(
        name, open_call, BATCHES_UNDER_WAY, *contestants, rows=rows, tokens_per_row=tokens_per_row
    )


def _bare(rows: int, tokens_per_row: int) -> Turns:
    run = partial(bare, open_graph(MODEL_FILE), rows, tokens_per_row)
    return {Label(batches_name(rows, tokens_per_row), ONNXRUNTIME): _short(run)}


def _short(turn: Turn) -> Turn:
    return lambda seconds: turn(seconds * _SHARE_OF_CEILINGS)


def _triton(name: str, open_call: OpenCall, count: int, server: TritonServer) -> Turns:
    loop = ClosedLoop(name, count, open_call)

    def take(seconds: float) -> Round:
        try:
            server.ensure_running()
            triton = Contestant(TRITON, server.address, server.pid, make_stub=triton_loads.make_stub)
            return load(triton, loop, seconds)
        except TritonUnavailable as missing:
            raise TurnFailed(str(missing)) from None
        except (LoadFailed, grpc.RpcError, OSError) as broken:  # OSError: its process is gone from /proc
            raise TurnFailed(server.note_crash() or str(broken)) from None

    return {Label(name, TRITON): take}
