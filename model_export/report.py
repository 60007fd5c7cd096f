"""The tables of networks: what memory is worth, beside networks without and beside general compressors."""

import gzip
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from model_export.tasks.task import Cell, Outcome


class Row(NamedTuple):
    """One line: a network, or a compressor with no parameters."""

    name: str
    parameters: int
    file_bytes: int
    bits_per_byte: float


def compressor_rows(data: bytes) -> list[Row]:
    """Measures gzip -9 and xz -9 on the bytes."""
    sizes = {
        "gzip -9": len(gzip.compress(data, 9)),
        "xz -9": len(lzma.compress(data, preset=9)),
    }
    return [Row(name, 0, 0, 8 * size / len(data)) for name, size in sizes.items()]


def table(rows: Sequence[Row]) -> str:
    """Formats rows as a Markdown table, worst first."""
    lines = ["| network | parameters | file, bytes | bits per byte |", "|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -row.bits_per_byte):
        parameters = f"{row.parameters:,}" if row.parameters else ""
        size = f"{row.file_bytes:,}" if row.file_bytes else ""
        lines.append(f"| {row.name} | {parameters} | {size} | {row.bits_per_byte:.3f} |")
    return "\n".join(lines)


def task_table(outcome: Outcome) -> str:
    """Formats what a task measured as a Markdown table, a figure a line, its networks side by side."""
    lines = ["| | " + " | ".join(str(row[0]) for row in outcome.rows) + " |"]
    lines.append("|---|" + "---:|" * len(outcome.rows))
    for index, column in enumerate(outcome.columns[1:], start=1):
        lines.append(f"| {column} | " + " | ".join(_cell(row[index]) for row in outcome.rows) + " |")
    return "\n".join(lines)


def write(
    folder: Path,
    rows: Sequence[Row],
    facts: Mapping[str, Cell],
    outcomes: Sequence[Outcome] = (),
) -> None:
    """Writes TRAINING.md and training.json into the folder. What was not trained anew stays as it was.

    Args:
        folder: Of the models.
        rows: Byte networks and compressors.
        facts: On their corpus; empty if there are no rows.
        outcomes: Of the tasks.
    """
    path = folder / "training.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = {row["name"]: Row(**row) for row in before.get("rows", [])}
    rows = list({**kept, **{row.name: row for row in rows}}.values())
    facts = facts or before.get("facts", {})
    tasks = {name: Outcome.from_json(name, task) for name, task in before.get("tasks", {}).items()}
    tasks.update({outcome.name: outcome for outcome in outcomes})
    document = {
        "facts": facts,
        "rows": [row._asdict() for row in rows],
        "tasks": {name: outcome.to_json() for name, outcome in tasks.items()},
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    parts = ["# The shipped models", "Written by `make train`."]
    parts += ["## Text: `python-source`, bits per byte", table(rows), _listed(facts)] if rows else []
    for outcome in tasks.values():
        parts += [f"## `{outcome.name}`", f"{outcome.title}.", task_table(outcome), _listed(outcome.facts)]
    (folder / "TRAINING.md").write_text("\n\n".join(parts) + "\n")


def _listed(facts: Mapping[str, Cell]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
