"""What the form of a network costs: one that runs row by row, or token by token, and one with context.

The same GRU with the same weights, served four times under contracts that differ. What a row or a token
alone costs is a run of the graph for each; what a context costs is the windows that the server makes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from benchmarks.contestants import Contestant
from benchmarks.loads import load
from benchmarks.nets import Results, take
from benchmarks.results import HOLDFAST, Round
from benchmarks.section import Ratio, Section
from holdfast.bench.loads import ClosedLoop, batches, opening, streams
from holdfast.bench.payload import Payload
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from service.store.embedded import EmbeddedStore

TITLE = "Forms of networks"
HIDDEN, WIDTH, CONTEXT = 128, 64, 16
"""Units, values in a window, and how many of these are kept from the token before."""
PLAIN = "together"
STREAMS = 64

_CONTRACT = """\
{limits}
[input]
name = "x"
axes = ["time", "batch", {width}]
{window}
[[state]]
input = "h"
output = "h_next"
axes = [1, "batch", {hidden}]
[[output]]
name = "y"
axes = ["time", 1, "batch", {hidden}]
"""
FORMS = {
    PLAIN: ("", ""),
    "row by row": ("rows_per_run = 1", ""),
    "token by token": ("tokens_per_run = 1", ""),
    "with context": ("", f"token = {WIDTH - CONTEXT}\ncontext = {CONTEXT}"),
}
"""Name -> lines of the contract."""

LOADS: dict[str, tuple[int, int]] = {
    "64 rows x 1": (64, 1),
    "64 rows x 16": (64, 16),
    "1 row x 16": (1, 16),
}


def measure(folder: Path, quick: bool) -> Section:
    """Loads every form; see `benchmarks.section.Measure`."""
    if quick:
        return Section(TITLE, "Left out of a quick run.")
    return compare(folder, 0.5)


def compare(folder: Path, seconds: float) -> Section:
    """Loads a server that has all the forms, in turns.

    Args:
        folder: For the models, the store and the logs.
        seconds: Of each turn.
    """
    graph = build_graph()
    for number, (limits, window) in enumerate(FORMS.values()):
        place = folder / "models" / f"form-{number}" / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(graph)
        text = _CONTRACT.format(limits=limits, window=window, width=WIDTH, hidden=HIDDEN)
        (place / "contract.toml").write_text(text)
    store = EmbeddedStore.start(folder / "store")
    try:
        flags = ("--store", store.url, "--models", str(folder / "models"))
        with ServerProcess(folder / "server", *flags) as server:
            contestant = Contestant(HOLDFAST, server.address, server.pid, store.pid)
            turns = {form: _turns(contestant, number) for number, form in enumerate(FORMS)}
            return _section(take(turns, seconds))
    finally:
        store.release()


def build_graph(seed: int = 0) -> bytes:
    """Returns a GRU with random weights: x (time, batch, WIDTH), h (1, batch, HIDDEN)."""
    random = np.random.default_rng(seed)
    info, real = helper.make_tensor_value_info, TensorProto.FLOAT
    weights = {
        "W": random.normal(0, 0.1, (1, 3 * HIDDEN, WIDTH)),
        "R": random.normal(0, 0.05, (1, 3 * HIDDEN, HIDDEN)),
        "B": random.normal(0, 0.1, (1, 6 * HIDDEN)),
    }
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B", "", "h"], ["y", "h_next"], hidden_size=HIDDEN, linear_before_reset=1
    )
    graph = helper.make_graph(
        [node],
        "gru",
        [info("x", real, ["time", "batch", WIDTH]), info("h", real, [1, "batch", HIDDEN])],
        [info("y", real, ["time", 1, "batch", HIDDEN]), info("h_next", real, [1, "batch", HIDDEN])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _turns(contestant: Contestant, number: int) -> dict[str, Callable[[float], Round]]:
    name = f"form-{number}"
    width = WIDTH - CONTEXT if list(FORMS)[number] == "with context" else WIDTH
    payload = Payload(pb.Model(name=name, input=pb.InputSpec(width=width)))
    turns: dict[str, Callable[[float], Round]] = {}
    for load_name, (rows, count) in LOADS.items():
        loop = ClosedLoop(
            f"{name} {load_name}",
            2,
            batches(payload, count),
            rows=rows,
            tokens_per_row=count,
            opening=opening(payload),
        )
        turns[load_name] = partial(load, contestant, loop)
    one_each = ClosedLoop(f"{name} streams", STREAMS, streams(payload), opening=opening(payload))
    turns[f"{STREAMS} streams"] = partial(load, contestant, one_each)
    return turns


def server_us(results: Results, form: str, load_name: str) -> float:
    """Returns the median of the server's CPU time per step, us."""
    return statistics.median(turn.server_us for turn in results[form][load_name])


def _section(results: Results) -> Section:
    loads = list(results[PLAIN])
    lines = [f"| | {' | '.join(loads)} |", "|---|" + "---:|" * len(loads)]
    for form in results:
        cells = [f"{server_us(results, form, load_name):.1f}" for load_name in loads]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    ratios = [
        Ratio(
            f"{form}, {load_name}: server CPU per step over that of the same network together",
            server_us(results, form, load_name) / server_us(results, PLAIN, load_name),
        )
        for form in results
        for load_name in loads
        if form != PLAIN
    ]
    text = (
        f"Server CPU per step, us, of a GRU of {HIDDEN} units over {WIDTH} features; with context a token "
        f"has {WIDTH - CONTEXT} of them and {CONTEXT} are kept.\n\n" + "\n".join(lines)
    )
    data = {
        form: {load_name: [turn._asdict() for turn in rounds] for load_name, rounds in loads.items()}
        for form, loads in results.items()
    }
    return Section(TITLE, text, ratios, data)


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="per turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        section = compare(Path(folder), options.seconds)
    Console(width=200).print(section.text, *section.ratios, sep="\n\n", highlight=False)


if __name__ == "__main__":
    main()
