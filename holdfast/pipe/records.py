"""What is written for an event. Pure."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from holdfast.client.reply import StepReply
from holdfast.pipe.events import Event, Raw
from holdfast.pipe.places import Place
from holdfast.v1 import holdfast_pb2 as pb

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

OWN = ("session", "position", "source", "entry")
"""What every record begins with."""


class Written(NamedTuple):
    """A record on its way into a sink.

    Attributes:
        key: Whose it is: records of one key come in the order of their places. Of an output it is the
            session.
        place: Of its event.
        record: By column.
    """

    key: str
    place: Place
    record: Mapping[str, Any]


class Asked(NamedTuple):
    """What is asked of each reply, as `AsyncSession.step` takes it.

    Attributes:
        top_k: Likeliest next tokens, or classes; None leaves it to the server.
        token_log_prob: Log-probability of each token.
        outputs: Names of outputs; empty for none.
    """

    top_k: int | None = None
    token_log_prob: bool = False
    outputs: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `AsyncSession.step`."""
        given = {
            "top_k": self.top_k,
            "token_log_prob": self.token_log_prob,
            "outputs": self.outputs or None,
        }
        return {name: value for name, value in given.items() if value is not None and value is not False}


class Records:
    """Makes the records of a pipe.

    Args:
        source_id: Name of its source.
        time_field: Under which the time of an event is passed through; "" for none.
        asked: Of each reply.
        model: As it is served.

    Attributes:
        columns: Of the records of events, in order.
        asked: Of each reply: what the server would give, if nothing was asked for.

    Raises:
        ValueError: Two columns have one name.
    """

    def __init__(self, source_id: str, time_field: str, asked: Asked, model: pb.Model) -> None:
        self._source_id = source_id
        self._time_field = time_field
        self.asked = given = asked if asked.options else _default(model)
        self._with_top = bool(given.top_k)
        self._with_log_prob = given.token_log_prob
        self._outputs = given.outputs
        names = [*OWN, *filter(None, [time_field])]
        names += ["top"] * self._with_top + ["token_log_probs"] * self._with_log_prob + [*self._outputs]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"a record would have several columns called {', '.join(doubled)}")
        self.columns = tuple(names)

    def of(self, event: Event, reply: StepReply) -> Written:
        """Returns the record of an event: what its chunk of k tokens gave.

        `top` has k lists of [id, log-probability], or one where the model ranks once a chunk;
        `token_log_probs` has k numbers; an output (k, ...) is a nested list, or a number if it is one.
        """
        raw = event.raw
        record: dict[str, Any] = {
            "session": event.session_id,
            "position": reply.position,
            "source": self._source_id,
            "entry": raw.entry,
        }
        if self._time_field:
            record[self._time_field] = event.time
        if self._with_top:
            record["top"] = reply.top
        if self._with_log_prob:
            log_probs = reply.token_log_probs
            record["token_log_probs"] = None if log_probs is None else log_probs.tolist()
        for name in self._outputs:
            values = reply.outputs.get(name)
            record[name] = None if values is None else _plain(values)
        return Written(event.session_id, raw.place, record)


def dead_letter(source_id: str, raw: Raw, why: str) -> Written:
    """Returns the record of an event that was not applied, with all that there is of it."""
    event = raw.content if raw.fields is None else dict(raw.fields)
    record = {"source": source_id, "entry": raw.entry, "error": why, "event": event}
    return Written(f"entry {raw.entry}", raw.place, record)


DEAD_LETTER_COLUMNS = ("source", "entry", "error", "event")


def score_of(model: pb.Model) -> str:
    """Returns the output of a model that has the role of a score.

    Raises:
        ValueError: None has it, or several.
    """
    names = [output.name for output in model.outputs if output.role == "score"]
    if len(names) != 1:
        there = ", ".join(f"{output.name} ({output.role})" for output in model.outputs)
        raise ValueError(
            f"--score: {model.name} has {len(names)} outputs of the role score; it has {there}"
        )
    return names[0]


def to_json(value: Any) -> str:
    """Returns a record, or a value of one, as a line of JSON; numbers that JSON does not have are null."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(_without_nan(value))


def to_texts(values: Iterable[Any]) -> list[str]:
    """Returns values as texts: a str as it is, all else as JSON."""
    return [value if isinstance(value, str) else to_json(value) for value in values]


def to_csv(values: Iterable[Any]) -> str:
    """Returns values as a line of CSV: a str as it is, but for one of several lines, all else as JSON."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        value if isinstance(value, str) and value.isprintable() else to_json(value) for value in values
    )
    return line.getvalue()


def _default(model: pb.Model) -> Asked:
    """Returns what a server gives that is asked for nothing; see OutputSelection in the contract."""
    for output in model.outputs:
        if output.role in ("logits", "probs", "log_probs"):
            return Asked(top_k=min(5, math.prod(output.shape)))
    return Asked(outputs=tuple(output.name for output in model.outputs))


def _plain(values: np.ndarray[Any, Any]) -> Any:
    return values.item() if values.size == 1 else values.tolist()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
