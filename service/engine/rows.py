"""Chunks that move through the engine together: rows of a message, or single chunks that wait together.

All of them are of distinct sessions, equally long, and ask for the same, so that what is said of
them lies in arrays and a batch is a few operations on these, however many rows it has. A row becomes an
object of its own, a `Work`, only when it is cold, a retry, refused, or came first as one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast import history_digest
from service.engine.work import Answer, Asked, Selection, Work
from service.model.protocol import Model
from service.store.protocol import AckLevel, Writes

NOT_GIVEN = -1
"""Where a chunk names no position, or acknowledges none."""

TOKEN_DTYPES: dict[Literal["text", "ids", "features"], np.dtype[Any]] = {
    "text": np.dtype("u1"),
    "ids": np.dtype("<i8"),
    "features": np.dtype("<f4"),
}

_ONE_FOR_ALL = ("model", "selection")
_FILLED = (
    "slots", "stamps", "nonces", "models", "places", "states", "outputs", "next_states", "is_finite",
    "next_stamps",
)  # fmt: skip


class Applied(NamedTuple):
    """Rows that are committed.

    Attributes:
        rows: Their numbers, as their owner counts, int64 (R,).
        stamps: Incarnation, position and history digest of each, int64 (R, 3).
        model_version: Version that ran.
        outputs: What each gave, encoded by the edge, uint8 (R, n).
        ack_level: How durable they are.
    """

    rows: NDArray[np.int64]
    stamps: NDArray[np.int64]
    model_version: int
    outputs: NDArray[np.uint8]
    ack_level: AckLevel = AckLevel.MEMORY


class Owner(Protocol):
    """Who gets the outcomes of rows; every row gets one."""

    def applied(self, applied: Applied) -> None:
        """Takes rows that are committed; must not raise."""

    def work(self, row: int) -> Work:
        """Returns a row as a chunk of its own, which is answered alone."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""


@dataclass(slots=True, eq=False)
class Rows:
    """B chunks of k tokens each, and, as they travel, what becomes of them.

    A column that is not filled yet has no value, and reading it is a bug.

    Attributes:
        owner: Gets the outcomes.
        numbers: Of each row, as the owner counts, int64 (B,).
        asked: What all of them ask.
        keys: Store keys of the sessions.
        tokens: (B, k) bytes or ids, (B, k, width) features; dtype by kind, see `TOKEN_DTYPES`.
        sums: What the tokens of each row do to a history digest, int64 (B, 2): `history_digest.sums_of`.
        positions: Claimed, int64 (B,); `NOT_GIVEN` is "append".
        acknowledged: Position of the last reply the client has, int64 (B,); `NOT_GIVEN` where not said;
            None where no row says.
        incarnations: Meant by the client, int64 (B,); 0 is any; None where every row means any.
        digests: History digests meant at the positions, int64 (B,); 0 is any; None where all mean any.
        arrived_s: Monotonic time of arrival: of each row, or one for all.
        deadline_s: Monotonic time after which the caller no longer waits.
        is_gathered: They came as single chunks.
        slots: Of the sessions in the cache, int64 (B,). These five are filled from there.
        stamps: Stamps that a commit must find, int64 (B, 3): incarnation, position and history digest.
        nonces: Of the sessions' openings, int64 (B,).
        models: Numbers of their models, int64 (B,).
        places: Where their states lie, int64 (B,).
        model: The model of all of them. These two are filled when the rows are to run.
        selection: What to return, completed.
        states: Raw, uint8 (B, state_bytes), from the cache; the run may change them.
        outputs: What each gave, encoded by the edge, uint8 (B, n). These three are filled by the run.
        next_states: Raw, uint8 (B, state_bytes).
        is_finite: Which of these have neither NaN nor infinity, (B,); None if all.
        next_stamps: Of the new records, int64 (B, 3). These three are filled for the commit.
        tails: The replies that each new record keeps, encoded; None if the next record needs none.
        writes: The new records.
    """

    owner: Owner
    numbers: NDArray[np.int64]
    asked: Asked
    keys: list[bytes]
    tokens: NDArray[Any]
    sums: NDArray[np.int64]
    positions: NDArray[np.int64]
    acknowledged: NDArray[np.int64] | None
    incarnations: NDArray[np.int64] | None
    digests: NDArray[np.int64] | None
    arrived_s: list[float]
    deadline_s: float = math.inf
    is_gathered: bool = False

    slots: NDArray[np.int64] = field(init=False)
    stamps: NDArray[np.int64] = field(init=False)
    nonces: NDArray[np.int64] = field(init=False)
    models: NDArray[np.int64] = field(init=False)
    places: NDArray[np.int64] = field(init=False)
    model: Model = field(init=False)
    selection: Selection = field(init=False)
    states: NDArray[np.uint8] = field(init=False)
    outputs: NDArray[np.uint8] = field(init=False)
    next_states: NDArray[np.uint8] = field(init=False)
    is_finite: NDArray[np.bool_] | None = field(init=False)
    next_stamps: NDArray[np.int64] = field(init=False)
    tails: list[bytes] | None = field(init=False)
    writes: Writes = field(init=False)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: NDArray[np.int64]) -> "Rows":
        """Returns some of the rows, by index, with all that is filled but `writes`."""
        places = chosen.tolist()
        part = replace(
            self,
            numbers=self.numbers[chosen],
            keys=[self.keys[place] for place in places],
            tokens=self.tokens[chosen],
            sums=self.sums[chosen],
            positions=self.positions[chosen],
            acknowledged=None if self.acknowledged is None else self.acknowledged[chosen],
            incarnations=None if self.incarnations is None else self.incarnations[chosen],
            digests=None if self.digests is None else self.digests[chosen],
            arrived_s=[self.arrived_s[place] for place in places] if self.is_gathered else self.arrived_s,
        )
        for name in _ONE_FOR_ALL:
            if hasattr(self, name):
                setattr(part, name, getattr(self, name))
        for name in _FILLED:
            column = getattr(self, name, None)
            if column is not None:
                setattr(part, name, column[chosen])
            elif hasattr(self, name):
                setattr(part, name, None)
        if hasattr(self, "tails"):
            part.tails = None if self.tails is None else [self.tails[place] for place in places]
        return part

    def works(self) -> list[Work]:
        """Returns every row as a chunk of its own."""
        return [self.work(place) for place in range(len(self))]

    def work(self, place: int) -> Work:
        """Returns the row with this index as a chunk of its own, which came when the rows did."""
        work = self.owner.work(int(self.numbers[place]))
        if not self.is_gathered:
            [work.arrived_s] = self.arrived_s
        return work

    def ages_s(self, now_s: float) -> tuple[list[float], int]:
        """Returns how long rows have been here, and for how many rows each figure stands."""
        each = 1 if self.is_gathered else len(self)
        return [now_s - arrived_s for arrived_s in self.arrived_s], each


def to_tokens(asked: Asked, raw: bytes, row_count: int) -> NDArray[Any]:
    """Views raw tokens of rows as an array; see `Block.tokens`."""
    tokens = np.frombuffer(raw, TOKEN_DTYPES[asked.kind])
    if asked.kind == "features":
        return tokens.reshape(row_count, asked.token_count, asked.width)
    return tokens.reshape(row_count, asked.token_count)


def gather(works: Sequence[Work]) -> Rows:
    """Joins single chunks that ask for the same."""
    claims = [work.claim for work in works]
    asked = works[0].asked
    acknowledged = [claim.acknowledged for claim in claims]
    incarnations = [claim.incarnation for claim in claims]
    digests = [claim.digest for claim in claims]
    tokens = to_tokens(asked, b"".join([work.raw for work in works]), len(works))
    return Rows(
        owner=_Singles(works),
        numbers=np.arange(len(works)),
        asked=asked,
        keys=[work.key for work in works],
        tokens=tokens,
        sums=history_digest.sums_of(history_digest.to_elements(tokens).reshape(len(works), -1)),
        positions=_column([NOT_GIVEN if claim.position is None else claim.position for claim in claims]),
        acknowledged=_column([NOT_GIVEN if position is None else position for position in acknowledged])
        if any(position is not None for position in acknowledged)
        else None,
        incarnations=_column(incarnations) if any(incarnations) else None,
        digests=_column(digests) if any(digests) else None,
        arrived_s=[work.arrived_s for work in works],
        is_gathered=True,
    )


def _column(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


class _Singles:
    """Owns rows that came as single chunks."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works

    @property
    def is_cancelled(self) -> bool:
        """Each of them is looked at before they are joined."""
        return False

    def work(self, row: int) -> Work:
        """Returns the chunk."""
        return self._works[row]

    def applied(self, applied: Applied) -> None:
        """Answers each chunk."""
        size = applied.outputs.shape[1]
        joined = applied.outputs.tobytes()
        for index, (row, (incarnation, position, digest)) in enumerate(
            zip(applied.rows.tolist(), applied.stamps.tolist(), strict=True)
        ):
            outputs = joined[index * size : (index + 1) * size]
            answer = Answer(
                incarnation, position, digest, applied.model_version, False, outputs, applied.ack_level
            )
            self._works[row].settle(answer)
