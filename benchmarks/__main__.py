"""`make bench`: Holdfast beside an echo, a plain server and onnxruntime alone, in turns.

Steps per second move with whatever else the machine does; the ratios of medians and the CPU time per
step say more.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime as ort
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from benchmarks import report
from benchmarks.contestants import MODEL_FILE, Field, peak_memory_bytes
from benchmarks.loads import ClosedLoop, Round, bare, columns, load, streams, unary
from service.demo.oracle import open_graph

_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs the rounds, prints the tables and writes them to benchmarks/results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per turn")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder, Field(Path(folder)) as field:
        turns = _turns(field)
        for take in turns.values():
            take(min(0.5, options.seconds))  # sessions are opened, caches filled
        rounds = _take_turns(turns, options.rounds, options.seconds)
        memory_mib = peak_memory_bytes(field.holdfast.server_pid) / 2**20
    facts: dict[str, str | int | float] = {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "cores": os.cpu_count() or 0,
        "rounds": options.rounds,
        "seconds per turn": options.seconds,
        "peak memory of the server, MiB": round(memory_mib, 1),
    }
    report.write(options.out, rounds, facts)
    console = Console(width=160)
    console.print(report.table(rounds), report.ratios(rounds), sep="\n\n", highlight=False)


Turn = Callable[[float], Round]


def _turns(field: Field) -> dict[str, Turn]:
    """Returns every contestant with its load, by the label of the report, neighbours to be compared."""
    session = open_graph(MODEL_FILE)
    turns: dict[str, Turn] = {}
    for kind, count in (("64 streams", 64), ("256 streams", 256), ("1 stream", 1)):
        contestants = [field.holdfast] if count == 256 else [field.holdfast, field.echo]
        for contestant in contestants:
            turns[f"{contestant.name} {kind}"] = partial(load, contestant, ClosedLoop(kind, streams), count)
    for kind, count in (("64 unary callers", 64), ("256 unary callers", 256)):
        other = field.echo if count == 64 else field.plain
        for contestant in (field.holdfast, other):
            turns[f"{contestant.name} {kind}"] = partial(load, contestant, ClosedLoop(kind, unary), count)
    for rows, count in ((256, 1), (64, 16)):
        kind = f"{rows} rows x {count}"
        caller = ClosedLoop(kind, columns(rows, count), rows=rows, tokens_per_row=count)
        turns[f"holdfast {kind}"] = partial(load, field.holdfast, caller, 2)
        turns[f"onnxruntime {kind}"] = partial(bare, session, rows, count)
    return turns


def _take_turns(turns: dict[str, Turn], count: int, seconds: float) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {label: [] for label in turns}
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=count * len(turns))
        for _ in range(count):
            for label, take in turns.items():
                progress.update(task, description=label)
                rounds[label].append(take(seconds))
                progress.advance(task)
    return rounds


if __name__ == "__main__":
    main()
