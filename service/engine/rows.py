"""Rows of chunks that move through the engine together.

They are of distinct sessions, equally long, and ask for the same, so that what is said of them lies in
columns and a batch is a few operations on arrays, however many rows it has. Columns are filled as the rows
travel: when they are looked up in the cache, by the run, for the commit. The rows of a message are together
from the start; single chunks are joined when a batch is taken. A row that fares otherwise than the others
leaves them by `take`, or goes back as it came by `anew`.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError
from holdfast.history_digest import run_of, sums_of, to_elements
from service.engine.asked import Asked, Needs, TokenKind
from service.engine.rules import Claim
from service.engine.sampling import Sample
from service.model.protocol import Model
from service.store.protocol import AckLevel, Writes
from service.store.record import Tail

_log = logging.getLogger(__name__)

NOT_GIVEN = -1
"""Where a row names no position, or acknowledges none."""

TOKEN_DTYPES: dict[TokenKind, np.dtype[Any]] = {
    "text": np.dtype("u1"),
    "ids": np.dtype("<i8"),
    "features": np.dtype("<f4"),
}


class Reply(NamedTuple):
    """What a chunk gets that is applied.

    Attributes:
        incarnation: Of the session.
        position: Tokens consumed, the chunk included.
        digest: History digest there.
        model_version: Version that ran.
        replayed: It had been applied before.
        outputs: What it gave, encoded by the edge.
        ack_level: How durable it is.
    """

    incarnation: int
    position: int
    digest: int
    model_version: int
    replayed: bool
    outputs: bytes
    ack_level: AckLevel = AckLevel.MEMORY


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk, sent by itself.

    Attributes:
        key: Store key of its session.
        asked: What it asks.
        tokens: Raw, (k,) or (k, width), row-major; dtype by kind, see `TOKEN_DTYPES`.
        reply: Called once, on the event loop, with this chunk and what it gets.
        position: Tokens before it; None is "append".
        acknowledged: Position of the last reply the client has; None if it does not say.
        incarnation: Meant by the client; 0 is any.
        digest: History digest meant at the position; 0 is any.
        cursor: Stored with the session by its commit; None leaves what is stored.
        sample: What is to be drawn after it, where its selection `generates`.
        request: What the caller wants to find here again.
        deadline_s: Monotonic time after which the caller no longer waits.
        arrived_s: Monotonic time of arrival.
        is_cancelled: The caller has gone; skip it if it has not run yet.
        is_answered: It is settled.
    """

    key: bytes
    asked: Asked
    tokens: bytes
    reply: "Callable[[Chunk, Reply | ServiceError], None]"
    position: int | None = None
    acknowledged: int | None = None
    incarnation: int = 0
    digest: int = 0
    cursor: bytes | None = None
    sample: Sample | None = None
    request: Any = None
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    is_cancelled: bool = False
    is_answered: bool = False


def answer(reply: Callable[[Any, Any], None], about: "Chunk | Rows", outcome: Any) -> None:
    """Gives a caller what it gets; one that cannot take it must not hurt its neighbours."""
    try:
        reply(about, outcome)
    except Exception:  # noqa: BLE001 -- logged, whatever it is
        _log.exception("bug: a caller could not take its answer")


@dataclass(slots=True, eq=False)
class Message:
    """What the rows of one message have in common.

    Attributes:
        reply: Called on the event loop with some of the rows: committed or replayed, or refused with an
            error. Every row is among them once.
        row_count: Rows of the message.
        deadline_s: Monotonic time after which the caller no longer waits.
        arrived_s: Monotonic time of arrival.
        is_cancelled: The caller has gone; skip what has not run yet.
        stages: What was done for it, if its call is traced; see `stages`.
        is_answered: Which rows are settled, by their number.
    """

    reply: "Callable[[Rows, ServiceError | None], None]"
    row_count: int
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    is_cancelled: bool = False
    stages: Any = None
    is_answered: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.is_answered = np.zeros(self.row_count, np.bool_)


@dataclass(slots=True, eq=False)
class Rows:
    """B chunks of k tokens each, and, as they travel, what becomes of them.

    A column that is not filled yet has no value, and reading it is a bug.

    Attributes:
        asked: What all of them ask.
        keys: Store keys of the sessions.
        tokens: (B, k) bytes or ids, (B, k, width) features; dtype by kind, see `TOKEN_DTYPES`.
        sums: What the tokens of each row do to a history digest, int64 (B, 2): `history_digest.sums_of`.
        positions: Claimed, int64 (B,); `NOT_GIVEN` is "append".
        acknowledged: Position of the last reply the client has, int64 (B,); `NOT_GIVEN` where not said;
            None where no row says.
        incarnations: Meant by the client, int64 (B,); 0 is any; None where every row means any.
        digests: History digests meant at the positions, int64 (B,); 0 is any; None where all mean any.
        chunks: Whom to answer: the chunks that were joined, or else
        message: the message of all of them,
        numbers: and which of its rows they are, int64 (B,).
        conflict_count: How often another writer came first.
        cursors: Stored with the sessions by their commit; None leaves what is stored, or None for all.

        slots: Of the sessions in the cache, int64 (B,). These five are filled from there.
        stamps: Stamps that a commit must find, int64 (B, 3): incarnation, position and history digest.
        nonces: Of the sessions' openings, int64 (B,).
        models: Numbers of their models, int64 (B,).
        places: Where their states lie, int64 (B,).
        is_ahead: Whose clients have not acknowledged the last chunk, (B,); None if all have, as those that
            wait do. Filled when the rows are decided on.
        model: The model of all of them. These two are filled when the rows are to run.
        needs: What it has to give.
        states: Raw, uint8 (B, state_bytes), from the cache; the run may change them, and lets go of them.
        outputs: What each gave, encoded by the edge, uint8 (B, n). These three are filled by the run.
        next_states: Raw, uint8 (B, state_bytes).
        is_finite: Which of these have neither NaN nor infinity, (B,); None if all.
        next_stamps: Of the new records, int64 (B, 3). These two are filled once it has ended.
        kept: Encoded, the replies that each new record keeps; None if these are only what the rows gave.
        tails: The replies that each new record keeps, encoded; None if the next record needs none. Both are
            filled when the commit begins.
        writes: The new records.
        ack_level: How durable they are. These two are filled when the rows are answered.
        is_replayed: They had been applied before; stamps and outputs are those of the kept replies.
    """

    asked: Asked
    keys: list[bytes]
    tokens: NDArray[Any]
    sums: NDArray[np.int64]
    positions: NDArray[np.int64]
    acknowledged: NDArray[np.int64] | None = None
    incarnations: NDArray[np.int64] | None = None
    digests: NDArray[np.int64] | None = None
    chunks: list[Chunk] | None = None
    message: Message | None = None
    numbers: NDArray[np.int64] | None = None
    conflict_count: int = 0
    cursors: list[bytes | None] | None = None

    slots: NDArray[np.int64] = field(init=False)
    stamps: NDArray[np.int64] = field(init=False)
    nonces: NDArray[np.int64] = field(init=False)
    models: NDArray[np.int64] = field(init=False)
    places: NDArray[np.int64] = field(init=False)
    is_ahead: NDArray[np.bool_] | None = field(init=False)
    model: Model = field(init=False)
    needs: Needs = field(init=False)
    states: NDArray[np.uint8] = field(init=False)
    outputs: NDArray[np.uint8] = field(init=False)
    next_states: NDArray[np.uint8] = field(init=False)
    is_finite: NDArray[np.bool_] | None = field(init=False)
    next_stamps: NDArray[np.int64] = field(init=False)
    kept: list[Tail] | None = field(init=False)
    tails: list[bytes] | None = field(init=False)
    writes: Writes = field(init=False)
    ack_level: AckLevel = field(init=False)
    is_replayed: bool = field(init=False)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: NDArray[np.int64]) -> "Rows":
        """Returns some of the rows, by index, with all that is filled but `writes`."""
        part = self.anew(chosen)
        for name in _ONE_FOR_ALL:
            if hasattr(self, name):
                setattr(part, name, getattr(self, name))
        for name in _OF_EACH:
            if hasattr(self, name):
                setattr(part, name, _at(getattr(self, name), chosen))
        if hasattr(self, "tails"):
            part.tails = _some(self.tails, chosen)
        return part

    def anew(self, chosen: NDArray[np.int64]) -> "Rows":
        """Returns some of the rows, by index, as they came: nothing is filled."""
        return Rows(
            self.asked,
            [self.keys[place] for place in chosen.tolist()],
            self.tokens[chosen],
            self.sums[chosen],
            self.positions[chosen],
            _at(self.acknowledged, chosen),
            _at(self.incarnations, chosen),
            _at(self.digests, chosen),
            _some(self.chunks, chosen),
            self.message,
            _at(self.numbers, chosen),
            self.conflict_count,
            _some(self.cursors, chosen),
        )

    def one(self, place: int) -> "Rows":
        """Returns the row with this index, with all that is filled but `writes`."""
        return self.take(np.array([place]))

    def others(self, places: Iterable[int]) -> NDArray[np.int64]:
        """Returns the rows that are not among these, all by index."""
        return np.setdiff1d(np.arange(len(self)), list(places))

    def claim(self, place: int) -> Claim:
        """Returns what a row says of itself, for the rules."""
        position = int(self.positions[place])
        acknowledged = NOT_GIVEN if self.acknowledged is None else int(self.acknowledged[place])
        return Claim(
            token_count=self.asked.token_count,
            tokens=self.tokens[place],
            position=None if position == NOT_GIVEN else position,
            acknowledged=None if acknowledged == NOT_GIVEN else acknowledged,
            incarnation=0 if self.incarnations is None else int(self.incarnations[place]),
            digest=0 if self.digests is None else int(self.digests[place]),
        )

    def arrived_s(self, place: int) -> float:
        """Returns the monotonic time at which a row came."""
        return self.chunks[place].arrived_s if self.chunks is not None else self._message.arrived_s

    def ages_s(self, now_s: float) -> tuple[list[float], int]:
        """Returns how long rows have been here, and for how many rows each figure stands."""
        if self.chunks is not None:
            return [now_s - chunk.arrived_s for chunk in self.chunks], 1
        return [now_s - self._message.arrived_s], len(self)

    def by_demand(self, now_s: float) -> "tuple[Rows | None, Rows | None]":
        """Cuts the rows into those that a caller waits for and the others; None is no row."""
        if not self.keys:
            return None, None
        if self.chunks is None:
            is_wanted = not self._message.is_cancelled and self._message.deadline_s >= now_s
            return (self, None) if is_wanted else (None, self)
        unwanted = []
        for place, chunk in enumerate(self.chunks):
            if chunk.is_cancelled or chunk.deadline_s < now_s:
                unwanted.append(place)
        if not unwanted:
            return self, None
        wanted = self.others(unwanted)
        return (self.take(wanted) if len(wanted) else None), self.take(np.array(unwanted))

    def waiting_count(self) -> int:
        """Returns how many rows have a caller who has not gone."""
        if self.chunks is not None:
            return sum(not chunk.is_cancelled for chunk in self.chunks)
        return 0 if self._message.is_cancelled else len(self)

    def mark_answered(self) -> None:
        """Notes that the rows are settled."""
        if self.chunks is None:
            self._message.is_answered[self.numbers] = True
        else:
            for chunk in self.chunks:
                chunk.is_answered = True

    def unanswered(self) -> NDArray[np.int64]:
        """Returns the rows that were not settled, by index."""
        if self.chunks is not None:
            return np.flatnonzero([not chunk.is_answered for chunk in self.chunks])
        return np.flatnonzero(~self._message.is_answered[self.numbers])

    def settle(self, error: ServiceError | None = None) -> None:
        """Gives callers what their rows get."""
        if self.chunks is None:
            answer(self._message.reply, self, error)
            return
        if error is not None:
            for chunk in self.chunks:
                answer(chunk.reply, chunk, error)
            return
        version, is_replayed, ack_level = self.model.version, self.is_replayed, self.ack_level
        size, outputs = self.outputs.shape[1], self.outputs.tobytes()
        start = 0
        for chunk, stamp in zip(self.chunks, self.next_stamps.tolist(), strict=True):
            end = start + size
            own = outputs[start:end]
            incarnation, position, digest = stamp
            reply = Reply(incarnation, position, digest, version, is_replayed, own, ack_level)
            answer(chunk.reply, chunk, reply)
            start = end

    @property
    def _message(self) -> Message:
        assert self.message is not None, "bug: rows of nobody"
        return self.message


_ONE_FOR_ALL = ("model", "needs", "ack_level", "is_replayed")
_OF_EACH = (
    *("slots", "stamps", "nonces", "models", "places", "is_ahead"),
    *("states", "outputs", "next_states", "is_finite", "next_stamps"),
)


def _at(column: NDArray[Any] | None, chosen: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if column is None else column[chosen]


def _some(values: list[Any] | None, chosen: NDArray[np.int64]) -> list[Any] | None:
    return None if values is None else [values[place] for place in chosen.tolist()]


def to_tokens(asked: Asked, raw: bytes, row_count: int) -> NDArray[Any]:
    """Views raw tokens of rows as an array; see `Rows.tokens`."""
    tokens = np.frombuffer(raw, TOKEN_DTYPES[asked.kind])
    if asked.kind == "features":
        return tokens.reshape(row_count, asked.token_count, asked.width)
    return tokens.reshape(row_count, asked.token_count)


def token_sums(tokens: NDArray[Any]) -> NDArray[np.int64]:
    """Returns what the tokens of rows do to history digests; see `Rows.sums`."""
    if len(tokens) == 1:  # the idle server: scalars are faster than arrays of one, and bytes than both
        only = tokens.tobytes() if tokens.dtype == np.uint8 else tokens[0]
        return np.array([run_of(only)[:2]], np.int64)
    return sums_of(to_elements(tokens).reshape(len(tokens), -1))
