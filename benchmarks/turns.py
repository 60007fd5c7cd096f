"""Which contestant takes which load, and the turns they take: A B A B, so a slow minute hits all alike."""

from collections.abc import Callable
from functools import partial

import grpc
from rich.progress import Progress, TimeRemainingColumn

from benchmarks import callers
from benchmarks.ceilings import IDLE_PAUSE_S, bare, commits
from benchmarks.contestants import MODEL_FILE, Connect, Contestant, Field
from benchmarks.graphs import open_graph
from benchmarks.loads import load
from benchmarks.peers.triton import loads as triton_loads
from benchmarks.peers.triton.environment import TritonUnavailable
from benchmarks.peers.triton.server import TritonServer
from benchmarks.results import (
    CLIENT,
    ONE_COMMIT,
    ONE_RUN,
    ONNXRUNTIME,
    STORE,
    TRITON,
    TRITON_CLIENT,
    Label,
    Results,
    Round,
)
from holdfast import AsyncClient
from holdfast.bench.loads import ClosedLoop, LoadFailed, OpenCall, batches, opening, streams, unary
from holdfast.bench.payload import Payload
from holdfast.v1 import holdfast_pb2 as pb

BATCHES_UNDER_WAY = 2
"""Batches under way at once, each with sessions of its own."""

_SHARE_OF_CEILINGS = 1 / 3
"""Of a turn's time: what runs alone, on one thread, settles sooner."""

_WARM_UP_S = 0.5


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
    alone = open_graph(MODEL_FILE)
    return (
        _callers(1, holdfast)
        | loaded("1 stream", one_each, 1, holdfast, echo)
        | _callers(8, holdfast)
        | _callers(64, holdfast)
        | loaded("64 callers", call_each, 64, holdfast, echo, plain)
        | _triton("64 callers", 64, field.triton, triton_loads.unary, triton_loads.client_unary)
        | _threads(64, holdfast)
        | _client_streams(64, holdfast)
        | loaded("64 streams", one_each, 64, holdfast, echo)
        | _triton("64 streams", 64, field.triton, triton_loads.streams, triton_loads.client_streams)
        | _callers(256, holdfast)
        | loaded("256 callers", call_each, 256, holdfast, plain)
        | _triton("256 callers", 256, field.triton, triton_loads.unary)
        | loaded("256 streams", one_each, 256, holdfast)
        | _triton("256 streams", 256, field.triton, triton_loads.streams)
        | _callers(1024, holdfast)
        | in_batches(256, 1, holdfast)
        | _bare(256, 1)
        | in_batches(64, 16, holdfast)
        | _bare(64, 16)
        | {Label(ONE_RUN, ONNXRUNTIME): _short(partial(bare, alone, 1, 1, pause_s=IDLE_PAUSE_S))}
        | {Label(ONE_COMMIT, STORE): _short(partial(commits, field.store, pause_s=IDLE_PAUSE_S))}
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


def _callers(count: int, holdfast: Contestant) -> Turns:
    name = f"{count:,} caller" + ("s" if count > 1 else "")
    return _by_client(name, holdfast, callers.Callers(f"{CLIENT} {name}", count, callers.steps))


def _client_streams(count: int, holdfast: Contestant) -> Turns:
    name = f"{count} streams"
    return _by_client(name, holdfast, callers.Callers(f"{CLIENT} {name}", count, callers.streams))


def _threads(count: int, holdfast: Contestant) -> Turns:
    name = f"{count} threads"
    threads = callers.Threads(f"{CLIENT} {name}", count)
    contestant = holdfast._replace(name=CLIENT, connect=callers.by_threads)
    return {Label(name, CLIENT): partial(load, contestant, threads)}


def _by_client(name: str, holdfast: Contestant, loop: callers.Callers) -> Turns:
    contestant = holdfast._replace(name=CLIENT, connect=AsyncClient)
    return {Label(name, CLIENT): partial(load, contestant, loop)}


def _bare(rows: int, tokens_per_row: int) -> Turns:
    run = partial(bare, open_graph(MODEL_FILE), rows, tokens_per_row)
    return {Label(batches_name(rows, tokens_per_row), ONNXRUNTIME): _short(run)}


def _short(turn: Turn) -> Turn:
    return lambda seconds: turn(seconds * _SHARE_OF_CEILINGS)


def _triton(
    name: str, count: int, server: TritonServer, open_call: OpenCall, client_call: OpenCall | None = None
) -> Turns:
    """Returns the turns of Triton by gRPC, and by its client if `client_call` says how."""

    def turn(contestant: str, connect: Connect, loop: ClosedLoop, seconds: float) -> Round:
        try:
            server.ensure_running()
            return load(Contestant(contestant, server.address, server.pid, connect=connect), loop, seconds)
        except TritonUnavailable as missing:
            raise TurnFailed(str(missing)) from None
        except (LoadFailed, grpc.RpcError, OSError) as broken:  # OSError: its process is gone from /proc
            raise TurnFailed(server.note_crash() or str(broken)) from None

    ways = [(TRITON, triton_loads.by_grpc, open_call)]
    if client_call is not None:
        ways.append((TRITON_CLIENT, triton_loads.by_client, client_call))
    return {
        Label(name, contestant): partial(turn, contestant, connect, ClosedLoop(name, count, way))
        for contestant, connect, way in ways
    }
