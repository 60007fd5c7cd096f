"""The report: one table of figures, one of ratios beside their targets, and JSON with every round."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.loads import Round


class Target(NamedTuple):
    """A ratio of medians that is asked for.

    Attributes:
        name: What is compared.
        figure: Field of Round.
        numerator: Label of the contestant with its load.
        denominator: The other one.
        at_least: Lower bound; None if `at_most` is given.
        at_most: Upper bound.
    """

    name: str
    figure: str
    numerator: str
    denominator: str
    at_least: float | None = None
    at_most: float | None = None


TARGETS = (
    Target("64 streams: steps/s over echo's", "steps_per_s", "holdfast 64 streams", "echo 64 streams", 0.9),
    Target(
        "64 streams: server CPU over echo's",
        "server_us",
        "holdfast 64 streams",
        "echo 64 streams",
        at_most=1.4,
    ),
    Target(
        "256 rows x 1: steps/s over bare onnxruntime's",
        "steps_per_s",
        "holdfast 256 rows x 1",
        "onnxruntime 256 rows x 1",
        0.6,
    ),
    Target(
        "64 rows x 16: steps/s over bare onnxruntime's",
        "steps_per_s",
        "holdfast 64 rows x 16",
        "onnxruntime 64 rows x 16",
        0.7,
    ),
    Target(
        "256 sessions: unary steps/s over plain's",
        "steps_per_s",
        "holdfast 256 unary callers",
        "plain 256 unary callers",
        2,
    ),
    Target(
        "256 sessions: streams' steps/s over plain's unary",
        "steps_per_s",
        "holdfast 256 streams",
        "plain 256 unary callers",
        5.5,
    ),
)

Rounds = Mapping[str, Sequence[Round]]


def median(rounds: Rounds, label: str, figure: str) -> float:
    """Returns the median of a figure over the rounds of one label."""
    return statistics.median(getattr(turn, figure) for turn in rounds[label])


def table(rounds: Rounds) -> str:
    """Formats medians, with the range of steps/s, as a Markdown table."""
    lines = [
        "| | steps/s (min..max) | p50 ms | p99 ms | p99.9 ms | server us/step | store us/step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, turns in rounds.items():
        speeds = [turn.steps_per_s for turn in turns]
        p50, p99, p999, server, store = (
            median(rounds, label, figure)
            for figure in ("p50_ms", "p99_ms", "p999_ms", "server_us", "store_us")
        )
        speed = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}..{max(speeds):,.0f})"
        lines.append(
            f"| {label} | {speed} | {p50:.2f} | {p99:.2f} | {p999:.2f} | {server:.1f} | {store:.1f} |"
        )
    return "\n".join(lines)


def ratios(rounds: Rounds) -> str:
    """Formats the targets with what was measured as a Markdown table."""
    lines = ["| ratio of medians | measured | target | met |", "|---|---:|---:|---|"]
    for target in TARGETS:
        value = ratio(rounds, target)
        bound = f">= {target.at_least}" if target.at_least is not None else f"<= {target.at_most}"
        met = "yes" if is_met(target, value) else "no"
        lines.append(f"| {target.name} | {value:.2f} | {bound} | {met} |")
    return "\n".join(lines)


def ratio(rounds: Rounds, target: Target) -> float:
    """Returns the ratio a target speaks of."""
    return median(rounds, target.numerator, target.figure) / median(
        rounds, target.denominator, target.figure
    )


def is_met(target: Target, value: float) -> bool:
    """Tells whether a ratio reaches its target."""
    if target.at_least is not None:
        return value >= target.at_least
    assert target.at_most is not None, "bug: a target without a bound"
    return value <= target.at_most


def write(folder: Path, rounds: Rounds, facts: Mapping[str, str | int | float]) -> None:
    """Writes report.md and report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text = f"# Benchmark\n\nWritten by `make bench`.\n\n{listed}\n\n{table(rounds)}\n\n{ratios(rounds)}\n"
    (folder / "report.md").write_text(text)
    document = {
        "facts": dict(facts),
        "rounds": {label: [turn._asdict() for turn in turns] for label, turns in rounds.items()},
        "ratios": {target.name: ratio(rounds, target) for target in TARGETS},
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n")
