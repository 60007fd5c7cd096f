"""Batches: one message with the next tokens of many sessions, and one reply to it.

Rows are chunks like any other: they share the queue with everything else that waits, and each of them
succeeds or fails alone. What they gave comes back as a matrix of bytes with the same layout in all rows,
out of which the columns of the reply are cut.
"""

import functools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest, ReplyTooLarge, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine import rules
from service.engine.asked import Asked
from service.engine.checks import largest_reply_bytes
from service.engine.driver import Driver
from service.engine.rows import TOKEN_DTYPES, Message, Rows, to_tokens, token_sums
from service.engine.stages import Stages
from service.model.protocol import Model
from service.rpc import codec
from service.rpc.claims import claims_of
from service.rpc.stack import MAX_REPLY_BYTES, Piece, stack_outputs
from service.rpc.status import to_status
from service.store.beside import MAX_CURSOR_BYTES
from service.store.protocol import AckLevel

MAX_MESSAGE_TOKENS = 16_384
"""Of all rows of a message together, where a chunk may not have more: half a second's work or so."""

MAX_ROWS_AT_ONCE = 256
MAX_STEPS_AT_ONCE = 4096
"""Bounds on what goes through the engine at once, so that a large message leaves room for others."""

_FRAME_BYTES, _ROW_FRAME_BYTES = 1024, 16
"""More than what the fields of the reply to a batch take beside their payloads, and each separate row."""

ROW_BYTES = 512
"""What a row takes beside its tokens, about."""


_STAMP_FIELDS = (
    pb.BatchResult.INCARNATIONS_FIELD_NUMBER,
    pb.BatchResult.POSITIONS_FIELD_NUMBER,
    pb.BatchResult.HISTORY_DIGESTS_FIELD_NUMBER,
)


class BatchLimits(NamedTuple):
    """What a message may ask for.

    Attributes:
        models: The models served.
        max_tokens: Most tokens of a row.
        max_rows: Most rows.
    """

    models: Iterable[Model]
    max_tokens: int
    max_rows: int

    @property
    def max_message_tokens(self) -> int:
        """Most tokens of all rows together."""
        return max(MAX_MESSAGE_TOKENS, self.max_tokens)


class BatchCall:
    """One message on its way.

    Args:
        batch: As received.
        on_done: Called once, when every row is answered; possibly from `submit`.
        on_part: Called with every answer before that; None for a reply in one piece.
        tenant: Whose sessions these are.
        limits: What it may ask for.
        deadline_s: Monotonic time after which the caller no longer waits.

    Raises:
        InvalidRequest, ReplyTooLarge: The message as a whole is wrong; no row was touched.
    """

    def __init__(
        self,
        batch: pb.Batch,
        on_done: Callable[["BatchCall"], None],
        tenant: str,
        limits: BatchLimits,
        *,
        on_part: Callable[["BatchCall"], None] | None = None,
        deadline_s: float = math.inf,
    ) -> None:
        level = codec.check_model_and_level(batch, "batch")
        if not batch.model.name:
            raise InvalidRequest("batch.model.name is empty", field="batch.model.name")
        if batch.outputs.state:
            raise InvalidRequest(
                "a batch gives no state: read it with GetSession", field="batch.outputs.state"
            )
        if not 0 <= batch.timeout_s < math.inf:
            raise InvalidRequest(
                f"timeout_s is {batch.timeout_s}, expected seconds, or 0 for none", field="batch.timeout_s"
            )
        if batch.timeout_s:
            deadline_s = min(deadline_s, time.monotonic() + batch.timeout_s)
        self._tag = batch.tag
        self._claims = claims_of(batch)
        self._cursors = list(batch.cursors)
        self._session_ids = list(batch.session_ids)
        asked, self._raw = _tokens(batch, limits)
        self._asked = asked._replace(ack_level=level)
        _check_reply_size(self._asked, self.row_count, limits)
        if len(set(self._session_ids)) < self.row_count:
            raise InvalidRequest("a session id occurs twice in one message", field="batch.session_ids")
        self._tokens = to_tokens(self._asked, self._raw, self.row_count)
        self._on_done = on_done
        self._on_part = on_part
        self._tenant = tenant
        self._message = Message(self._reply, self.row_count, deadline_s)
        self._left_count = self._unsent_count = self.row_count
        self._errors: dict[int, ServiceError] = {}
        self._pieces: list[Piece] = []

    def trace(self, stages: Stages) -> None:
        """Has the stages of its rows noted, before it is submitted."""
        self._message.stages = stages

    @property
    def row_count(self) -> int:
        """B."""
        return len(self._session_ids)

    @property
    def tag(self) -> int:
        """The caller's number, as sent."""
        return self._tag

    @property
    def size_bytes(self) -> int:
        """Returns about how much memory it takes until it is answered."""
        size_bytes = codec.CHUNK_BYTES + len(self._raw) + ROW_BYTES * self.row_count
        return size_bytes + sum(map(len, self._cursors))

    @property
    def is_done(self) -> bool:
        """Whether every row is answered."""
        return self._left_count == 0

    @property
    def answered_count(self) -> int:
        """Rows that are answered and in no reply yet."""
        return self._unsent_count - self._left_count

    @property
    def errors(self) -> list[ServiceError]:
        """What such rows were refused with."""
        return list(self._errors.values())

    def submit(self, engine: Driver) -> None:
        """Gives the rows to the engine."""
        for rows in self._rows():
            engine.submit_rows(rows)

    def cancel(self) -> None:
        """The caller has gone: rows that have not run yet are skipped."""
        self._message.is_cancelled = True

    def reply(self) -> bytes:
        """Returns the serialised StepBatchResponse, which is also the serialised StreamBatchesResponse.

        It has the rows that are answered, but for those in replies before.
        """
        pieces, errors, numbers = self._take_answers()
        row_count = len(numbers) or self.row_count
        replayed: list[int] = []
        if len(pieces) == 1 and len(pieces[0].numbers) == row_count:
            columns = pieces[0].stamps.T
        else:
            columns = np.zeros((3, row_count), np.int64)
            for piece in pieces:
                columns[:, piece.numbers] = piece.stamps.T
        for piece in pieces:
            if piece.is_replayed:
                replayed += piece.numbers.tolist()
        result = pb.BatchResult(
            tag=self._tag,
            rows=numbers,
            replayed_rows=sorted(replayed),
            errors=[pb.RowError(row=row, status=to_status(error)) for row, error in sorted(errors.items())],
            ack_level=codec.ack_number(_common({piece.ack_level for piece in pieces})),
        )
        taken_bytes = result.ByteSize() + columns.nbytes + _FRAME_BYTES + _ROW_FRAME_BYTES * row_count
        token_count = row_count * self._asked.token_count
        stack = stack_outputs(row_count, token_count, pieces, MAX_REPLY_BYTES - taken_bytes)
        result.model_version = stack.model_version
        result.separate_rows.extend(stack.separate)
        parts = [result.SerializeToString()]
        for number, column in zip(_STAMP_FIELDS, columns, strict=True):
            parts.append(codec.delimited(number, column.tobytes()))
        return codec.splice_outputs(b"".join(parts), stack.outputs)

    def _take_answers(self) -> tuple[list[Piece], dict[int, ServiceError], list[int]]:
        """Returns what is answered, and of which rows that is; none are all rows of the message.

        Rows are numbered by their place among those.
        """
        pieces, self._pieces = self._pieces, []
        errors, self._errors = self._errors, {}
        is_whole = self._left_count == 0 and self._unsent_count == self.row_count
        self._unsent_count = self._left_count
        if is_whole:
            return pieces, errors, []
        numbers = sorted([*errors, *(row for piece in pieces for row in piece.numbers.tolist())])
        places = np.zeros(self.row_count, np.int64)
        places[numbers] = np.arange(len(numbers))
        pieces = [piece._replace(numbers=places[piece.numbers]) for piece in pieces]
        return pieces, {int(places[row]): error for row, error in errors.items()}, numbers

    def _rows(self) -> Iterator[Rows]:
        """Yields the rows that are well-formed; answers the others."""
        positions, acknowledged, incarnations, digests, _ = self._claims
        every = Rows(
            self._asked,
            [b""] * self.row_count,
            self._tokens,
            token_sums(self._tokens),
            positions,
            acknowledged,
            incarnations,
            digests,
            message=self._message,
            numbers=np.arange(self.row_count),
        )
        if any(self._cursors):
            every.cursors = [cursor or None for cursor in self._cursors]
        every.keys, places = self._keys(every)
        step = max(1, min(MAX_ROWS_AT_ONCE, MAX_STEPS_AT_ONCE // self._asked.token_count))
        if len(places) == self.row_count <= step:
            yield every
        else:
            for start in range(0, len(places), step):
                yield every.anew(places[start : start + step])

    def _keys(self, every: Rows) -> tuple[list[bytes], NDArray[np.int64]]:
        """Returns the store keys of rows, and which are well-formed; answers the others."""
        if (
            self._claims.are_right(self._asked.token_count)
            and max(map(len, self._cursors), default=0) <= MAX_CURSOR_BYTES
        ):
            try:
                return codec.keys_of(self._tenant, self._session_ids), np.arange(self.row_count)
            except InvalidRequest:  # found again below, with its row
                pass
        keys, places = list(every.keys), []
        for row, session_id in enumerate(self._session_ids):
            try:
                keys[row] = codec.key_of(self._tenant, session_id, f"batch.session_ids[{row}]")
                rules.check(self._claims.of(every, row))
                if self._cursors:
                    codec.check_cursor(self._cursors[row], f"batch.cursors[{row}]")
                places.append(row)
            except InvalidRequest as error:
                every.one(row).settle(error.without_trace())
        return keys, np.array(places, np.int64)

    def _reply(self, rows: Rows, error: ServiceError | None) -> None:
        """Takes what became of some rows; see `Message`."""
        numbers = rows.numbers
        assert numbers is not None, "bug: rows of another message"
        if error is not None:
            self._errors |= dict.fromkeys(numbers.tolist(), error)
        else:
            self._pieces.append(
                Piece(
                    numbers,
                    rows.next_stamps,
                    rows.model.version,
                    rows.outputs,
                    rows.ack_level,
                    rows.is_replayed,
                )
            )
        self._left_count -= len(numbers)
        if self._left_count == 0:
            self._message.reply = _answered  # it held this, and this the message
            self._on_done(self)
        elif self._on_part is not None:
            self._on_part(self)


def _answered(_: Rows, __: ServiceError | None) -> None:
    raise AssertionError("bug: a message whose rows are all answered gets one more answer")


def _tokens(batch: pb.Batch, limits: BatchLimits) -> tuple[Asked, bytes]:
    """Returns what all rows ask and their tokens, row-major, after every field was checked."""
    rows, count = len(batch.session_ids), batch.tokens_per_row or 1
    if rows == 0:
        raise InvalidRequest("the message has no rows, expected at least 1", field="batch.session_ids")
    if rows > limits.max_rows:
        raise InvalidRequest(
            f"the message has {rows} rows, expected at most {limits.max_rows}", field="batch.session_ids"
        )
    if not 1 <= count <= limits.max_tokens:
        raise InvalidRequest(
            f"tokens_per_row is {count}, expected 1..{limits.max_tokens}", field="batch.tokens_per_row"
        )
    if rows * count > limits.max_message_tokens:
        raise InvalidRequest(
            f"the message has {rows * count} tokens, expected at most {limits.max_message_tokens}",
            field="batch.tokens_per_row",
        )
    for name in ("positions", "acknowledged_positions", "incarnations", "history_digests", "cursors"):
        length = len(getattr(batch, name))
        if length not in (0, rows):
            raise InvalidRequest(f"{name} has {length} entries for {rows} rows", field=f"batch.{name}")
    kind = batch.WhichOneof("tokens")
    asked = Asked(kind, count, 1, batch.model.name, batch.model.version, codec.to_selection(batch))
    if kind == "text":
        _check_count("text", len(batch.text), rows, count)
        return asked, batch.text
    if kind == "ids":
        _check_count("ids.values", len(batch.ids.values), rows, count)
        return asked, np.array(batch.ids.values, TOKEN_DTYPES["ids"]).tobytes()
    if kind == "features":
        size_bytes = len(batch.features)
        if size_bytes == 0 or size_bytes % (4 * rows * count):
            raise InvalidRequest(
                f"features have {size_bytes} bytes, expected 4 * width for each of {rows} x {count} tokens",
                field="batch.features",
            )
        return asked._replace(width=size_bytes // (4 * rows * count)), batch.features
    raise InvalidRequest("the batch has no tokens, expected text, ids or features", field="batch.tokens")


def _check_reply_size(asked: Asked, rows: int, limits: BatchLimits) -> None:
    """Refuses what the client could not receive. A wrong selection is for the rows to say."""
    for model in limits.models:
        if model.name != asked.model_name or asked.model_version not in (0, model.version):
            continue
        size_bytes = rows * largest_reply_bytes(asked, model.contract)
        if size_bytes > MAX_REPLY_BYTES:
            raise ReplyTooLarge(
                f"the reply would have up to {size_bytes} bytes, a client receives at most "
                f"{MAX_REPLY_BYTES}: send fewer rows or ask for fewer outputs",
                field="batch.outputs",
            )


def _check_count(name: str, given: int, rows: int, count: int) -> None:
    if given != rows * count:
        raise InvalidRequest(
            f"{name} has {given} tokens, expected {count} for each of {rows} rows", field=f"batch.{name}"
        )


def _common(levels: set[AckLevel]) -> AckLevel:
    """Returns what all of the levels have; no level at all is MEMORY."""
    return functools.reduce(operator.and_, levels) if levels else AckLevel.MEMORY
