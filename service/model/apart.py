"""What of a batch runs apart, for graphs that would mix it: rows, tokens or both. Pure."""

from collections.abc import Mapping

PARTS = ("rows", "tokens")

Apart = Mapping[str, frozenset[str]]
"""Name of a model -> what of it runs apart, all its versions."""


def parse_apart(text: str) -> dict[str, frozenset[str]]:
    """Reads `NAME=rows,tokens;NAME=rows`.

    Raises:
        ValueError: It is not of this form, or names a model twice.
    """
    apart: dict[str, frozenset[str]] = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, equals, parts = entry.rpartition("=")
        found = frozenset(part.strip() for part in parts.split(","))
        if not name or not equals or not found <= set(PARTS):
            raise ValueError("expected NAME=rows, NAME=tokens or NAME=rows,tokens; further ones after a ;")
        if name in apart:
            raise ValueError(f"it names {name} twice")
        apart[name] = found
    return apart
