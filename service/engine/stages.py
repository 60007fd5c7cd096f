"""What the engine did for the chunks of one call, and when: for its trace. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from service.engine.rows import Rows


class Stage(NamedTuple):
    """One of them.

    Attributes:
        name: "load", "run", "commit" or "confirm".
        began_s: Monotonic time.
        ended_s: Monotonic time.
    """

    name: str
    began_s: float
    ended_s: float


class Stages(list[Stage]):
    """Every stage of the chunks of a call, in order; a chunk has it as `request`, a message as `stages`."""


def note(parts: Iterable[Rows], name: str, began_s: float, ended_s: float) -> None:
    """Notes a stage of rows for those of their calls that are traced."""
    stage = Stage(name, began_s, ended_s)
    for rows in parts:
        if rows.chunks is not None:
            for chunk in rows.chunks:
                if isinstance(chunk.request, Stages):
                    chunk.request.append(stage)
        elif rows.message is not None and isinstance(rows.message.stages, Stages):
            rows.message.stages.append(stage)
