"""This tree beside another version of it, in turns: `python -m benchmarks.versions REVISION`.

The other version takes part twice, so the columns "old to old" say how much of a ratio is noise. Each
server has a store of its own. Both versions are asked in the contract of this one.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import Contestant
from benchmarks.results import Label, Results, Round
from benchmarks.turns import Turns, in_batches, loaded, payload, take_turns
from holdfast.bench.loads import streams, unary
from holdfast.demo.processes import ServerProcess
from service.store.embedded import EmbeddedStore

ROOT = Path(__file__).parent.parent
OLD, NEW, OLD_AGAIN = "old", "new", "old again"
FLOOR = 0.97
"""Steps per second that a version has to have of those of the other."""


def main() -> None:
    """Prints the ratios of every load."""
    parser = argparse.ArgumentParser(description="Compares this tree with another version, in turns.")
    parser.add_argument("revision", help="of git, or the folder of a tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per turn")
    parser.add_argument("--only", default="", help="loads whose name has this")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
        old = stack.enter_context(_tree(options.revision, folder / "tree"))
        servers = [
            stack.enter_context(_server(name, tree, folder / name))
            for name, tree in ((OLD, old), (NEW, ROOT), (OLD_AGAIN, old))
        ]
        results = take_turns(_turns(servers, options.only), options.rounds, options.seconds)
    Console(width=120).print(_table(results))


@contextmanager
def _tree(revision: str, folder: Path) -> Iterator[Path]:
    if Path(revision).is_dir():
        yield Path(revision).resolve()
        return
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def _server(name: str, tree: Path, folder: Path) -> Iterator[Contestant]:
    before = dict(os.environ)
    store = EmbeddedStore.start(folder / "store")
    try:
        # goes before the tree that is installed, and without the second before the working directory does
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
        models = ("--models", str(tree / "models"))
        with ServerProcess(folder / "server", "--store", store.url, *models) as server:
            yield Contestant(name, server.address, server.pid, store.pid)
    finally:
        store.release()
        os.environ.clear()
        os.environ.update(before)


def _turns(servers: Sequence[Contestant], only: str) -> Turns:
    """Returns the turns, all servers of a load one after the other."""
    one_each, call_each = streams(payload()), unary(payload())
    turns = (
        loaded("1 stream", one_each, 1, *servers)
        | loaded("64 streams", one_each, 64, *servers)
        | loaded("256 streams", one_each, 256, *servers)
        | loaded("1 unary caller", call_each, 1, *servers)
        | loaded("64 unary callers", call_each, 64, *servers)
        | loaded("256 unary callers", call_each, 256, *servers)
        | in_batches(256, 1, *servers)
        | in_batches(64, 16, *servers)
    )
    return {label: turn for label, turn in turns.items() if only in label.load}


def _table(results: Results) -> Table:
    table = Table("load", title="medians over the rounds of the ratio to the old version in the same round")
    for column in ("steps/s", "old to old", "p50", "server CPU a step", "old to old", "new, us"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(label.load for label in results.rounds):
        old, new, again = (results.rounds[Label(name, who)] for who in (OLD, NEW, OLD_AGAIN))
        rate, p50, cpu = (
            _ratio(new, figure, old, again) for figure in ("steps_per_s", "p50_ms", "server_us")
        )
        cpu_us = statistics.median(_figure(turn, "server_us") for turn in new)
        table.add_row(
            name,
            f"{rate:.2f}{'' if rate >= FLOOR else ' !'}",
            f"{_ratio(again, 'steps_per_s', old):.2f}",
            f"{p50:.2f}",
            f"{cpu:.2f}",
            f"{_ratio(again, 'server_us', old):.2f}",
            f"{cpu_us:.1f}",
        )
    return table


def _ratio(rounds: Sequence[Round], figure: str, *others: Sequence[Round]) -> float:
    """Returns the median over the rounds of a figure over the mean of others' in the same round."""
    return statistics.median(
        _figure(turn, figure) / statistics.fmean(_figure(other, figure) for other in same)
        for turn, *same in zip(rounds, *others, strict=True)
    )


def _figure(turn: Round, figure: str) -> float:
    value: float = getattr(turn, figure)
    return value


if __name__ == "__main__":
    main()
