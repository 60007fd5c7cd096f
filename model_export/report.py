"""The table of networks: what memory is worth, in bits per byte, beside general compressors."""

import gzip
import json
import lzma
from pathlib import Path
from typing import NamedTuple


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


def table(rows: list[Row]) -> str:
    """Formats rows as a Markdown table, worst first."""
    lines = ["| network | parameters | file, bytes | bits per byte |", "|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -row.bits_per_byte):
        parameters = f"{row.parameters:,}" if row.parameters else ""
        size = f"{row.file_bytes:,}" if row.file_bytes else ""
        lines.append(f"| {row.name} | {parameters} | {size} | {row.bits_per_byte:.3f} |")
    return "\n".join(lines)


def write(folder: Path, rows: list[Row], facts: dict[str, str | int | float]) -> None:
    """Writes TRAINING.md and training.json into the folder."""
    listed = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())
    text = f"# The shipped models\n\nWritten by `make train`.\n\n{table(rows)}\n\n{listed}\n"
    (folder / "TRAINING.md").write_text(text)
    document = {"facts": facts, "rows": [row._asdict() for row in rows]}
    (folder / "training.json").write_text(json.dumps(document, indent=2) + "\n")
