"""What an event says: its session, its tokens, its time. Pure."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from holdfast.client.tokens import TokenSource, normalise
from holdfast.pending import Tokens
from holdfast.pipe.places import Place

KINDS = ("text", "ids", "features")


class Malformed(Exception):
    """An event that cannot be applied; its text names the field."""


class Raw(NamedTuple):
    """An event as a source gives it.

    Attributes:
        place: Where it stands.
        entry: The same as people write it.
        fields: By name; None if it cannot be read.
        problem: Why it cannot be read.
        content: What stands there in place of fields: a line, or the values of one; None if nothing does.
    """

    place: Place
    entry: str
    fields: Mapping[str, Any] | None
    problem: str = ""
    content: str | list[str] | None = None


class Event(NamedTuple):
    """An event as it is applied.

    Attributes:
        raw: As it came.
        session_id: Whose it is.
        tokens: Text as bytes, ids int64 (k,) or features float32 (k, width).
        time: As it came; None if there is none.
    """

    raw: Raw
    session_id: str
    tokens: Tokens
    time: Any


class Fields(NamedTuple):
    """Which fields of an event say what.

    Attributes:
        session: Its session.
        kind: What its tokens are.
        tokens: Where they stand; several for features, a column each.
        time: Its time, which is passed through; "" for none.
    """

    session: str
    kind: Literal["text", "ids", "features"]
    tokens: tuple[str, ...]
    time: str = ""


def fields_of(session: str, tokens: str, time: str) -> Fields:
    """Reads the names of fields as the command line has them.

    Args:
        session: Name of the field.
        tokens: "text", "ids" or "features", with ":" and names after it unless the field is called so.
        time: Name of the field, or "".

    Raises:
        ValueError: `tokens` is something else.
    """
    kind, colon, names = tokens.partition(":")
    listed = tuple(names.split(",")) if colon else (kind,)
    if kind not in KINDS or not all(listed) or (kind != "features" and len(listed) > 1):
        raise ValueError(
            f"--token-field is {tokens!r}, expected text, text:FIELD, ids, ids:FIELD, features:FIELD or "
            "features:FIELD,FIELD,..."
        )
    return Fields(session, kind, listed, time)  # type: ignore[arg-type]


def read_event(raw: Raw, names: Fields) -> Event:
    """Reads an event.

    Raises:
        Malformed: A field is missing or is not what it should be.
    """
    fields = raw.fields
    if fields is None:
        raise Malformed(raw.problem)
    session = _field(fields, names.session)
    if isinstance(session, int) and not isinstance(session, bool):
        session = str(session)
    if not isinstance(session, str) or not session or not _is_utf8(session):
        raise Malformed(f"field {names.session!r} is {session!r:.80}, expected the id of a session")
    time = fields.get(names.time) if names.time else None
    if names.time and time is None:
        raise Malformed(f"field {names.time!r} is missing{_there(fields)}")
    tokens = _TOKENS[names.kind](fields, names.tokens)
    try:
        return Event(raw, session, normalise(tokens), time)
    except (TypeError, ValueError) as error:
        raise Malformed(f"field {names.tokens[0]!r}: {error}") from None


def _field(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise Malformed(f"field {name!r} is missing{_there(fields)}")
    return value


def _is_utf8(text: str) -> bool:
    """Whether text can be encoded: sources read what is not UTF-8 as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True


def _there(fields: Mapping[str, Any]) -> str:
    return f"; the event has {', '.join(map(repr, list(fields)[:8])) or 'no fields'}"


def _text(fields: Mapping[str, Any], names: tuple[str, ...]) -> TokenSource:
    value = _field(fields, names[0])
    if not isinstance(value, str) or not value:
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, expected text of at least one character")
    if not _is_utf8(value):
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, which is not UTF-8")
    return value


def _ids(fields: Mapping[str, Any], names: tuple[str, ...]) -> TokenSource:
    value = _field(fields, names[0])
    found = value
    if isinstance(value, str):
        try:
            found = [int(word) for word in value.strip().strip("[]").replace(",", " ").split()]
        except ValueError:
            found = None
    elif not isinstance(value, list):
        found = [value]
    if not found or not all(type(one) is int for one in found):
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, expected an id, or several")
    try:
        return np.array(found, np.int64)
    except OverflowError:
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, which is too large for an id") from None


def _features(fields: Mapping[str, Any], names: tuple[str, ...]) -> TokenSource:
    if len(names) > 1:
        return np.array([[_number(fields, name) for name in names]], np.float64)
    value = _field(fields, names[0])
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Malformed(f"field {names[0]!r} is {value!r:.80}, expected numbers") from None
    rows = value if isinstance(value, list) else [value]
    rows = rows if all(isinstance(row, list) for row in rows) else [rows]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, expected numbers, as many in each row")
    if not all(type(one) in (int, float) and math.isfinite(one) for row in rows for one in row):
        raise Malformed(f"field {names[0]!r} is {value!r:.80}, expected finite numbers")
    return np.array(rows, np.float64)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = _field(fields, name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Malformed(f"field {name!r} is {value!r:.80}, expected a finite number")
    return number


_TOKENS = {"text": _text, "ids": _ids, "features": _features}
