"""The section of the report on speed: what the turns came to, as a table, ratios and a picture. Pure."""

from collections.abc import Mapping
from itertools import groupby

from benchmarks.charts import Group, Row, draw
from benchmarks.results import ECHO, ONNXRUNTIME, Label, Results
from benchmarks.section import Section
from benchmarks.targets import goals, ratios

_DRAWN = {"steps_per_s": "steps/s", "p99_ms": "p99, ms", "server_us": "server CPU, us per step"}
"""Field of Round -> heading in the picture."""

_HEADER = (
    *("load", "", "steps/s", "min..max", "p50 ms", "p99 ms", "p99.9 ms"),
    *("server us/step", "store us/step", "load us/step"),
)

_LEGEND = """\
Medians of the rounds. Loads are closed loops: a caller waits for its reply, then sends its next token.

- `holdfast by its client`: `64 callers` are 64 tasks that call `session.step` of one `AsyncClient`, `64
  streams` are 64 `session.stream`s of it with one token under way each, `64 threads` call `session.step`
  of one `Client`. All are in one process, and their sessions are opened before.
- `holdfast`: plain gRPC callers by stubs of the contract, on one connection. `64 callers` are unary
  calls, `64 streams` have a stream and one token under way each; `256 rows x 1` are two callers, each
  with one message of 256 sessions under way, one token for each.
- `echo` answers the same unary calls and streams with replies of the same size and keeps nothing, on the
  loop and with the settings of gRPC and collector that Holdfast has.
- `plain` answers the same unary calls as a careful user would: calls that arrive while others are served
  form the next group, with one MGET, one run of all rows and one pipeline of SETs; redis-py with hiredis,
  and the loop and settings of the echo. It is not exactly once.
- `triton` keeps its states in memory, with the settings of `benchmarks/peers/triton/config.pbtxt`. It is
  called by the stubs of tritonclient with messages made before, the cheapest load there is, and `by its
  client` as its users call it: `infer` and `stream_infer` of its asyncio client. Ratios take the better
  of the two, at 64 or 256.
- `onnxruntime alone` is the step graph on one thread in the process of the load; `store alone` is one
  commit of one record, as the server makes it.

CPU is that of the processes, per step: server (or onnxruntime), store, and the load."""


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
    return Section("Speed", "\n\n".join(parts), ratios(results), data, plots, goals(results))


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
        f"| {' | '.join(_HEADER)} |",
        "|---|---|" + "---:|" * (len(_HEADER) - 2),
    ]
    for label in results.rounds:
        speed = results.spread(label, "steps_per_s")
        if speed is not None:
            cells = [*label, f"{speed.median:,.0f}", f"{speed.low:,.0f}..{speed.high:,.0f}"]
            cells += [_cell(results, label, figure, 2) for figure in ("p50_ms", "p99_ms", "p999_ms")]
            cells += [_cell(results, label, figure, 1) for figure in ("server_us", "store_us", "load_us")]
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
