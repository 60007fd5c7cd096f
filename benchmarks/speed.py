"""The section of the report on speed: what the turns came to, as a table, ratios and a picture. Pure."""

from collections.abc import Mapping
from itertools import groupby

from benchmarks.charts import Group, Row, draw
from benchmarks.results import ECHO, ONNXRUNTIME, Label, Results
from benchmarks.section import Section
from benchmarks.targets import ratios

_DRAWN = {"steps_per_s": "steps/s", "p99_ms": "p99, ms", "server_us": "server CPU, us per step"}
"""Field of Round -> heading in the picture."""

_LEGEND = """\
Medians of the rounds. Loads are closed loops on the same cores: `64 streams` are 64 callers, each with a
stream of its own and one token under way; `256 rows x 1` are two callers, each with one message of 256
sessions under way, one token for each. All callers share a connection; those of two workers have 16. CPU is
that of the processes. `echo` answers the same messages with replies of the same size and keeps nothing, on
the loop and with the settings of gRPC and collector that Holdfast has. `plain` is one GET, one run and
one SET per token. `triton` keeps its state in memory, with the settings of
`benchmarks/peers/triton/config.pbtxt`. `onnxruntime alone` is the step graph on one thread; `store alone`
writes records of the same size."""


def section(results: Results, peak_memory_mib: Mapping[str, float]) -> Section:
    """Writes the section.

    Args:
        results: Of all turns.
        peak_memory_mib: By contestant.
    """
    memory = ", ".join(f"{name} {mib:.0f}" for name, mib in peak_memory_mib.items())
    parts = [
        _LEGEND,
        table(results),
        f"Peak memory of the servers, MiB: {memory}.",
        *_notes(results),
    ]
    data = {
        "rounds": [
            {**label._asdict(), "rounds": [turn._asdict() for turn in turns]}
            for label, turns in results.rounds.items()
        ],
        "failures": [
            {**label._asdict(), "reasons": list(reasons)}
            for label, reasons in results.failures.items()
            if reasons
        ],
        "peak_memory_mib": dict(peak_memory_mib),
    }
    plots = {"speed.svg": picture(results)}
    return Section("Speed", "\n\n".join(parts), ratios(results), data, plots)


def _notes(results: Results) -> list[str]:
    """Says which turns failed, and why."""
    return [
        f"{label.contestant}, {label.load}: {len(reasons)} turns failed and {len(results.rounds[label])} "
        f"did not. {'; '.join(sorted(set(reasons)))}."
        for label, reasons in results.failures.items()
        if reasons
    ]


def table(results: Results) -> str:
    """Formats medians, with the range of steps/s, as a Markdown table."""
    lines = [
        "| load | | steps/s | min..max | p50 ms | p99 ms | p99.9 ms | server us/step | store us/step |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label in results.rounds:
        speed = results.spread(label, "steps_per_s")
        if speed is not None:
            cells = [*label, f"{speed.median:,.0f}", f"{speed.low:,.0f}..{speed.high:,.0f}"]
            cells += [_cell(results, label, figure, 2) for figure in ("p50_ms", "p99_ms", "p999_ms")]
            cells += [_cell(results, label, figure, 1) for figure in ("server_us", "store_us")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Results, label: Label, figure: str, digits: int) -> str:
    spread = results.spread(label, figure)
    return "" if spread is None else f"{spread.median:.{digits}f}"


def picture(results: Results) -> str:
    """Draws the loads that more than one contestant took, with the lower ceiling of each."""
    measured = [label for label, turns in results.rounds.items() if turns]
    groups = []
    for load, group in groupby(measured, lambda label: label.load):
        labels = list(group)
        if Label(load, ONNXRUNTIME) in labels:
            labels = [label for label in labels if label.contestant != ECHO]
        if len(labels) > 1:
            groups.append(Group(load, [_row(results, label) for label in labels]))
    return draw("Holdfast beside its peers (grey) and ceilings (hollow)", list(_DRAWN.values()), groups)


def _row(results: Results, label: Label) -> Row:
    spreads = [results.spread(label, figure) for figure in _DRAWN]
    return Row(label.contestant, spreads, label.contestant in (ECHO, ONNXRUNTIME))
