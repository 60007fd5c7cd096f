"""What every task gives back, and how its files are laid down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import onnx

Cell = str | int | float
Train = Callable[["Folders", float], "Outcome"]
"""Trains, exports, measures and draws; the number is a factor on the updates."""


class Folders(NamedTuple):
    """Where to write.

    Attributes:
        models: Folder of the models.
        pictures: Folder of the pictures.
    """

    models: Path
    pictures: Path


class Outcome(NamedTuple):
    """What a task reports.

    Attributes:
        name: Of the model.
        title: Over its table.
        columns: Of the table.
        rows: The network and its baseline.
        facts: Topics for people, in order.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    facts: dict[str, Cell]

    def to_json(self) -> dict[str, Any]:
        """Returns what training.json has of it below its name."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "facts": self.facts}

    @classmethod
    def from_json(cls, name: str, document: dict[str, Any]) -> Self:
        """Takes what `to_json` gave."""
        rows = document["rows"]
        return cls(
            name,
            document["title"],
            tuple(rows[0]),
            tuple(tuple(row.values()) for row in rows),
            document["facts"],
        )


def lay_down(folders: Folders, name: str, model: onnx.ModelProto, contract: str) -> int:
    """Writes a step graph and its contract as version 1; returns the bytes of the graph.

    The contract comes first: a folder that is served while it is written shows no graph without one.
    """
    folder = folders.models / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    data = model.SerializeToString()
    for path, content in ((folder / "contract.toml", contract.encode()), (folder / "model.onnx", data)):
        draft = path.with_suffix(".draft")
        draft.write_bytes(content)
        draft.replace(path)
    return len(data)


def lay_down_picture(folders: Folders, name: str, picture: str) -> None:
    """Writes an SVG."""
    folders.pictures.mkdir(parents=True, exist_ok=True)
    (folders.pictures / f"{name}.svg").write_text(picture)


def facts_in_toml(facts: dict[str, Cell]) -> str:
    """Returns the table [facts]: text by topic."""
    lines = [f"{topic.replace(' ', '_')} = {_quoted(str(value))}" for topic, value in facts.items()]
    return "\n".join(["[facts]", *lines, ""])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
