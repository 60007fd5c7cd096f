"""Large nets and small: how much of onnxruntime's own speed is left when a server is around it.

Step graphs with random weights, in the form that `model_export` gives the shipped ones: what a step costs
does not depend on what a network has learnt. Beside them the same nets with ONNX's recurrent operators: is
that form still the right one?
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from rich.console import Console
from rich.progress import Progress

from benchmarks.ceilings import bare
from benchmarks.contestants import Contestant
from benchmarks.fused import build_fused
from benchmarks.graphs import open_graph
from benchmarks.loads import load
from benchmarks.results import HOLDFAST, Round
from benchmarks.section import Ratio, Section
from holdfast.bench.loads import ClosedLoop, batches, opening, streams
from holdfast.bench.payload import Payload
from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from model_export.contract import byte_network_contract
from model_export.graph import GATES, Layer, Weights, build_graph
from service.store.embedded import EmbeddedStore

TITLE = "Large nets and small"
SPECTRAL_RADIUS = 0.9
"""Of the recurrent matrices: memory fades, so that a state stays in the range of a trained one."""
ROUNDS = 3
ALONE = ((1, 1), (8, 1), (64, 1), (256, 1), (1, 16), (64, 16))
"""Rows and tokens per row of onnxruntime alone."""
COLUMNS = ((256, 1), (64, 16))
"""Rows and tokens per row of the server's messages."""
STREAMS = 64
SHARE_OF_ALONE = 1 / 4
"""Of a turn's time: what runs alone settles sooner."""


class Net(NamedTuple):
    """A network to be made."""

    kind: str
    hidden: int
    layers: int = 1

    @property
    def name(self) -> str:
        """As a model and in the report."""
        return f"{self.kind}-{self.hidden}" + (f"x{self.layers}" if self.layers > 1 else "")


NETS = (
    Net("gru", 64),
    Net("gru", 128),
    Net("gru", 256),
    Net("gru", 512),
    Net("lstm", 512, 2),
    Net("elman", 256),
)

Results = dict[str, dict[str, list[Round]]]
"""Rounds by net, then by load."""


def measure(folder: Path, quick: bool) -> Section:
    """Loads every net; see `benchmarks.section.Measure`."""
    if quick:
        return Section(TITLE, "Left out of a quick run.")
    return compare(folder, NETS, 0.5)


def compare(folder: Path, nets: tuple[Net, ...], seconds: float) -> Section:
    """Loads a server that has all the nets, in turns with onnxruntime alone.

    Args:
        folder: For the models, the store and the logs.
        nets: What is made.
        seconds: Of each turn.
    """
    for net in nets:
        weights = random_weights(net)
        _write_model(folder / "models" / net.name / "1" / "model.onnx", weights)
        (folder / f"{net.name}-fused.onnx").write_bytes(build_fused(weights).SerializeToString())
    store = EmbeddedStore.start(folder / "store")
    try:
        flags = ("--store", store.url, "--models", str(folder / "models"))
        with ServerProcess(folder / "server", *flags) as server:
            contestant = Contestant(HOLDFAST, server.address, server.pid, store.pid)
            turns = {net.name: _turns(folder, contestant, net) for net in nets}
            return _section(take(turns, seconds))
    finally:
        store.release()


def random_weights(net: Net, seed: int = 0) -> Weights:
    """Draws the weights of a network over bytes."""
    random = np.random.default_rng(seed)
    gates = len(GATES[net.kind])

    def normal(*shape: int, scale: float) -> NDArray[np.float32]:
        return random.normal(0, scale, shape).astype(np.float32)

    def rotations() -> NDArray[np.float32]:
        square = [np.linalg.qr(random.normal(size=(net.hidden, net.hidden)))[0] for _ in range(gates)]
        return (SPECTRAL_RADIUS * np.concatenate(square, axis=1)).astype(np.float32)

    layers = [
        Layer(
            inputs=normal(net.hidden if number else 256, gates * net.hidden, scale=0.3 / (number + 1)),
            recurrent=rotations(),
            bias=normal(gates * net.hidden, scale=0.1),
        )
        for number in range(net.layers)
    ]
    readout = normal(net.hidden, 256, scale=3 / np.sqrt(net.hidden))
    return Weights(net.kind, layers, readout, normal(256, scale=0.1))


def _write_model(path: Path, weights: Weights) -> None:
    """Writes a step graph with its contract."""
    graph = build_graph(weights)
    contract = byte_network_contract(len(weights.readout), weights.state_names, training={}, parity={})
    helper.set_model_props(graph, contract)
    path.parent.mkdir(parents=True)
    path.write_bytes(graph.SerializeToString())


def _turns(folder: Path, contestant: Contestant, net: Net) -> dict[str, Callable[[float], Round]]:
    ours = open_graph(folder / "models" / net.name / "1" / "model.onnx")
    fused = open_graph(folder / f"{net.name}-fused.onnx")
    payload = Payload(pb.Model(name=net.name, vocabulary=pb.Vocabulary(size=256, is_bytes=True)))
    turns: dict[str, Callable[[float], Round]] = {}
    for rows, count in ALONE:
        turns[f"alone {rows} x {count}"] = _short(partial(bare, ours, rows, count))
        turns[f"fused {rows} x {count}"] = _short(partial(bare, fused, rows, count))
    for rows, count in COLUMNS:
        loop = ClosedLoop(
            f"{net.name} {rows}",
            2,
            batches(payload, count),
            rows=rows,
            tokens_per_row=count,
            opening=opening(payload),
        )
        turns[f"batches {rows} x {count}"] = partial(load, contestant, loop)
    one_each = ClosedLoop(f"{net.name} streams", STREAMS, streams(payload), opening=opening(payload))
    turns[f"{STREAMS} streams"] = partial(load, contestant, one_each)
    return turns


def _short(turn: Callable[[float], Round]) -> Callable[[float], Round]:
    return lambda seconds: turn(seconds * SHARE_OF_ALONE)


def take(turns: dict[str, dict[str, Callable[[float], Round]]], seconds: float) -> Results:
    """Takes all turns, by net and load, once to warm up, then ROUNDS times."""
    results: Results = {net: {load_name: [] for load_name in loads} for net, loads in turns.items()}
    with Progress() as progress:
        bar = progress.add_task("", total=(ROUNDS + 1) * sum(map(len, turns.values())))
        for number in range(ROUNDS + 1):
            for net, loads in turns.items():
                for load_name, take in loads.items():
                    progress.update(bar, description=f"{net}, {load_name}")
                    turn = take(seconds if number else seconds / 4)
                    results[net][load_name] += [turn] if number else []
                    progress.advance(bar)
    return results


def speed(results: Results, net: str, load_name: str) -> float:
    """Returns the median of steps per second."""
    return statistics.median(turn.steps_per_s for turn in results[net][load_name])


def over(results: Results, net: str, load_name: str, other: str) -> float:
    """Returns the speed under one load over that under another."""
    return speed(results, net, load_name) / speed(results, net, other)


def _section(results: Results) -> Section:
    ratios = [
        Ratio(
            f"{net}, {rows} rows x {count}: steps/s over onnxruntime alone",
            over(results, net, f"batches {rows} x {count}", f"alone {rows} x {count}"),
        )
        for net in results
        for rows, count in COLUMNS
    ]
    text = (
        "Steps per second with random weights. `alone` is onnxruntime on one thread with so many rows and "
        "tokens of each in a call; `batches` are two messages under way, `streams` have a token under way "
        f"each.\n\n{_speed_table(results)}\n\nThe same nets with ONNX's fused operators, alone: speed over "
        f"that of ours.\n\n{_fused_table(results)}"
    )
    data = {
        net: {load_name: [turn._asdict() for turn in rounds] for load_name, rounds in loads.items()}
        for net, loads in results.items()
    }
    return Section(TITLE, text, ratios, data)


def _speed_table(results: Results) -> str:
    loads = [name for name in next(iter(results.values())) if not name.startswith("fused")]
    shares = {f"batches {rows} x {count}": f"alone {rows} x {count}" for rows, count in COLUMNS}
    lines = [
        f"| | {' | '.join([*loads, *(f'{name}, of alone' for name in shares)])} |",
        "|---|" + "---:|" * (len(loads) + len(shares)),
    ]
    for net in results:
        cells = [f"{speed(results, net, load_name):,.0f}" for load_name in loads]
        cells += [f"{over(results, net, name, alone):.2f}" for name, alone in shares.items()]
        lines.append(f"| {net} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _fused_table(results: Results) -> str:
    shapes = [f"{rows} x {count}" for rows, count in ALONE]
    lines = [f"| | {' | '.join(shapes)} |", "|---|" + "---:|" * len(shapes)]
    for net in results:
        cells = [f"{over(results, net, f'fused {shape}', f'alone {shape}'):.2f}" for shape in shapes]
        lines.append(f"| {net} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nets", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="per turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        section = compare(Path(folder), NETS, options.seconds)
    Console(width=200).print(section.text, *section.ratios, sep="\n\n", highlight=False)


if __name__ == "__main__":
    main()
