"""Writes contract.toml, with remarks for people. Pure.

`tomllib` reads TOML and nothing in the standard library writes it; the few kinds of values that a contract
has are written here.
"""

import datetime
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from service.model.contract import GraphTensor
from service.model.patterns import collapse

Place = tuple[str, str, str]
"""Table, tensor (its graph input, or name), and key; key "" is the head of the table.

Of a key that stands in no table: that key and twice "".
"""
Notes = Mapping[Place, str]

_FIRST = ("contract_version", "description", "rows_per_run", "tokens_per_run", "feedback")
_TABLES = ("input", "state", "output", "session_input")
"""Tables of tensors; the first is written as one table where there is one of it."""
_LAST = ("constants", "vocabulary", "facts")
_KEYS = (
    "name", "input", "output", "kind", "axes", "token", "context", "size", "initial", "role", "labels",
    "switch", "units", "description",
)  # fmt: skip
"""In which order a table has them; others follow."""

_TITLES = {
    "input": "What one token is.",
    "state": "What is kept from token to token: a graph input, and the output that follows it.",
    "output": "What a reply has for each token.",
    "session_input": "What is given when a session is opened, and kept with it.",
    "constants": "Inputs of the graph that are always the same.",
    "vocabulary": "The ids there are.",
    "facts": "For people.",
}

_BEGINS = "; begins at zeros, unless initial = says otherwise"
"""What a session begins with is nowhere in a graph."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, Any], notes: Notes | None = None) -> str:
    """Returns a contract as the text of contract.toml; the same document always gives the same text.

    Args:
        document: As `tomllib` would read it.
        notes: Remarks for people, by place; one that begins with `?` is a question to answer.
    """
    remarks = dict(notes or {})
    tables = {*_TABLES, *_LAST}
    plain = [key for key in document if key not in tables]
    plain.sort(key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    lines = [_line(key, document[key]) + _remark(remarks, (key, "", "")) for key in plain]
    for topic in _TABLES:
        entries = _entries(document.get(topic))
        if topic == "state":
            entries = collapse(entries)
        for number, entry in enumerate(entries):
            is_single = topic == "input" and len(entries) == 1
            head = f"[{topic}]" if is_single else f"[[{topic}]]"
            lines += ["", *([f"# {_TITLES[topic]}"] if number == 0 else [])]
            lines += _table(head, topic, entry, remarks)
    for topic in _LAST:
        if document.get(topic):
            lines += ["", f"# {_TITLES[topic]}", f"[{topic}]"]
            for key, value in document[topic].items():
                lines.append(_line(key, value) + _remark(remarks, (topic, key, "")))
    return "\n".join(lines).strip("\n") + "\n"


def notes_of(
    document: Mapping[str, Any], inputs: Mapping[str, GraphTensor], outputs: Mapping[str, GraphTensor]
) -> dict[Place, str]:
    """Returns for each tensor of a document what the graph declares of it, and how a state begins."""
    notes: dict[Place, str] = {}
    for topic in _TABLES:
        tensors = outputs if topic == "output" else inputs
        for entry in _entries(document.get(topic)):
            name = str(entry.get("input") if topic == "state" else entry.get("name"))
            if name in tensors:
                notes[topic, name, ""] = describe(tensors[name])
                if topic == "state" and "initial" not in entry:
                    notes[topic, name, ""] += _BEGINS
    for name in document.get("constants", {}):
        if name in inputs:
            notes["constants", name, ""] = describe(inputs[name])
    return notes


def describe(tensor: GraphTensor) -> str:
    """Returns type and shape as the graph declares them, for people."""
    extents = ", ".join("?" if extent in (None, "") else str(extent) for extent in tensor.shape)
    return f"{tensor.dtype} [{extents}]"


def _entries(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        return [dict(value)]
    return [dict(entry) for entry in value or []]


def _table(head: str, topic: str, entry: Mapping[str, Any], remarks: Notes) -> list[str]:
    tensor = str(entry.get("input") if topic == "state" else entry.get("name"))
    first = re.sub(r"\{(\d+)\.\.\d+\}", r"\1", tensor)  # of states that are written as one
    lines = [head + _remark(remarks, (topic, first, ""))]
    ordered = [key for key in _KEYS if key in entry] + [key for key in entry if key not in _KEYS]
    lines += [_line(key, entry[key]) + _remark(remarks, (topic, first, key)) for key in ordered]
    return lines


def _remark(remarks: Notes, place: Place) -> str:
    text = remarks.get(place)
    return f"  # {' '.join(_printable(text).split())}" if text else ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_line(key, item) for key, item in value.items())} }}"
    if isinstance(value, datetime.date | datetime.time):  # datetime is a date
        return value.isoformat()
    raise TypeError(f"bug: TOML has no {type(value).__name__}")


def _text(text: str) -> str:
    """Returns a basic string: TOML's escapes are those of JSON; what cannot be seen is escaped as well."""
    return "".join(
        char if char.isprintable() else _escaped(char) for char in json.dumps(text, ensure_ascii=False)
    )


def _escaped(char: str) -> str:
    is_surrogate = "\ud800" <= char <= "\udfff"  # which no TOML can have
    return "?" if is_surrogate else f"\\U{ord(char):08x}"
