"""`make bench`: Holdfast beside ceilings and peers, in turns, and what else SECTIONS measure; one report.

Steps per second move with whatever else the machine does; the ratios of medians and the CPU time per
step say more.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import grpc
import onnxruntime as ort
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import forms, growth, nets, nuisances, report, speed
from benchmarks.contestants import Contestant, Field
from benchmarks.peers.triton.environment import TritonUnavailable, is_prepared, prepare
from benchmarks.results import TRITON
from benchmarks.section import Measure, Section
from benchmarks.turns import all_turns, take_turns

SECTIONS: tuple[Measure, ...] = (nets.measure, forms.measure, growth.measure, nuisances.measure)
"""What is measured after the turns, on servers and stores of its own."""

_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measures, prints the report and writes it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per turn")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the report")
    parser.add_argument(
        "--quick", action="store_true", help="sections are quick, and Triton's environment is not made"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        triton_missing = _triton_missing(options.quick)
        measures = (partial(_speed, options.rounds, options.seconds, triton_missing), *SECTIONS)
        sections, minutes = [], []
        for number, measure in enumerate(measures):
            own_folder = Path(folder) / f"section-{number}"
            own_folder.mkdir()
            began_s = time.monotonic()
            sections.append(measure(own_folder, options.quick))
            minutes.append((time.monotonic() - began_s) / 60)
    facts: dict[str, str | int | float] = {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "onnxruntime": ort.__version__,
        "cores": os.cpu_count() or 0,
        "rounds": options.rounds,
        "seconds per turn": options.seconds,
        "minutes": ", ".join(
            f"{section.title} {took:.1f}" for section, took in zip(sections, minutes, strict=True)
        ),
    }
    report.write(options.out, facts, sections)
    console = Console(width=None if sys.stdout.isatty() else 160)
    unpictured = [section._replace(plots={}) for section in sections]
    console.print(Markdown(report.markdown(facts, unpictured)))
    console.print(f"written to {options.out}", highlight=False)


def _speed(rounds: int, seconds: float, triton_missing: str, folder: Path, _: bool) -> Section:
    with Field(folder, triton_missing) as field:
        results = take_turns(all_turns(field), rounds, seconds)
        servers = [field.holdfast, field.echo, field.plain]
        if field.triton.is_running:
            servers.append(Contestant(TRITON, field.triton.address, field.triton.pid))
        memory = {server.name: server.peak_memory_mib() for server in servers}
    return speed.section(results, memory)


def _triton_missing(quick: bool) -> str:
    """Returns why Triton cannot take part; "" if it can."""
    if quick and not is_prepared():
        return "its environment is made by `make bench` only"
    try:
        prepare()
    except TritonUnavailable as missing:
        return str(missing)
    return ""


if __name__ == "__main__":
    main()
