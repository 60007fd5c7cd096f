"""The report: facts, all ratios in one table, section by section, then the goals; as Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.section import Ratio, Section

Facts = Mapping[str, str | int | float]

_HEAD = """\
The loads are pure client code, in one process of Python on the same cores as the servers and stores that
they load. What a load costs there is the column `load us/step`: where it comes near the microseconds in a
second over the steps per second, the load is what limits a figure. So compare rows of one table, not with
other machines; all contestants took turns within this run, and every ratio is one of medians."""


def write(folder: Path, facts: Facts, sections: Sequence[Section]) -> None:
    """Writes report.md, report.json and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(facts, sections))
    (folder / "report.json").write_text(json.dumps(document(facts, sections), indent=1) + "\n")
    for section in sections:
        for name, picture in section.plots.items():
            (folder / name).write_text(picture)


def markdown(facts: Facts, sections: Sequence[Section]) -> str:
    """Writes the report as text."""
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts = ["# Benchmark", "Written by `make bench`.", listed, _HEAD, "## Ratios"]
    parts.append(ratio_table([ratio for section in sections for ratio in section.ratios]))
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [f"![{section.title}]({name})" for name in section.plots]
    parts += ["## Goals", ratio_table([goal for section in sections for goal in section.goals])]
    return "\n\n".join(parts) + "\n"


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """Formats what was measured beside what is asked for."""
    lines = ["| ratio of medians | measured | target | met | |", "|---|---:|---:|---|---|"]
    return "\n".join([*lines, *map(_ratio_line, ratios)])


def _ratio_line(ratio: Ratio) -> str:
    value = "not measured" if ratio.value is None else f"{ratio.value:.2f}"
    bounds = ((">=", ratio.at_least), ("<=", ratio.at_most))
    target = ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    met = {True: "yes", False: "no", None: ""}[ratio.is_met]
    return f"| {ratio.name} | {value} | {target} | {met} | {ratio.note} |"


def document(facts: Facts, sections: Sequence[Section]) -> dict[str, object]:
    """Returns everything as JSON takes it."""
    return {
        "facts": dict(facts),
        "ratios": [_as_data(ratio) for section in sections for ratio in section.ratios],
        "goals": [_as_data(goal) for section in sections for goal in section.goals],
        "sections": {section.title: dict(section.data) for section in sections},
    }


def _as_data(ratio: Ratio) -> dict[str, object]:
    return {**ratio._asdict(), "is_met": ratio.is_met}
