"""Columns: one message with the next tokens of many sessions, and one reply to it.

Rows are chunks like any other: they share the queue with everything else that waits, and each of them
succeeds or fails alone. They go to the engine as blocks, and what these gave comes back as a matrix of
bytes with the same layout in all rows; the columns of the reply are cut out of it.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.history_digest import MAX_NUMBER, sums_of, to_elements
from holdfast.v1 import holdfast_pb2 as pb
from service.common.errors import InvalidRequest, ReplyTooLarge, ServiceError
from service.engine import rules
from service.engine.block import NOT_GIVEN, TOKEN_DTYPES, Applied, Block, to_tokens
from service.engine.engine import Engine
from service.engine.rules import Claim
from service.engine.work import Answer, Asked, Work, largest_reply_bytes
from service.model.protocol import Model
from service.rpc import codec
from service.rpc.status import to_status
from service.store.protocol import AckLevel

MAX_MESSAGE_TOKENS = 16_384
"""Of all rows of a message together, where a chunk may not have more: half a second's work or so."""

MAX_REPLY_BYTES = 16 << 20
"""Of a message in columns: what our client receives."""

MAX_BLOCK_ROWS = 256
MAX_BLOCK_STEPS = 4096
"""Bounds on what goes through the engine at once, so that a large message leaves room for others."""

_FRAME_BYTES, _ROW_FRAME_BYTES = 1024, 16
"""More than what the fields of a reply in columns take beside their payloads, and each separate row."""

ROW_BYTES = 512
"""What a row takes beside its tokens, about."""


class ColumnsLimits(NamedTuple):
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


class ColumnsCall:
    """One message on its way; owns its rows.

    Args:
        columns: As received.
        on_done: Called once, when every row is answered; possibly from `submit`.
        tenant: Whose sessions these are.
        limits: What it may ask for.
        deadline_s: Monotonic time after which the caller no longer waits.

    Raises:
        InvalidRequest, ReplyTooLarge: The message as a whole is wrong; no row was touched.
    """

    def __init__(
        self,
        columns: pb.Columns,
        on_done: Callable[[], None],
        tenant: str,
        limits: ColumnsLimits,
        *,
        deadline_s: float = math.inf,
    ) -> None:
        level = codec.check_model_and_level(columns, "columns")
        if not columns.model.name:
            raise InvalidRequest("columns.model.name is empty", field="columns.model.name")
        if columns.outputs.state:
            raise InvalidRequest(
                "columns give no state: read it with GetSession", field="columns.outputs.state"
            )
        self._tag = columns.tag
        self._claimed = _claimed(columns)
        self._names_positions = bool(columns.positions)
        self._session_ids = list(columns.session_ids)
        asked, self._raw = _tokens(columns, limits)
        self._asked = asked._replace(ack_level=level)
        _check_reply_size(self._asked, self.row_count, limits)
        if len(set(self._session_ids)) < self.row_count:
            raise InvalidRequest("a session id occurs twice in one message", field="columns.session_ids")
        self._tokens = to_tokens(self._asked, self._raw, self.row_count)
        self._on_done = on_done
        self._tenant = tenant
        self._deadline_s = deadline_s
        self._is_cancelled = False
        self._left_count = self.row_count
        self._works: dict[int, Work] = {}
        self._outcomes: dict[int, Answer | ServiceError] = {}
        self._applied: list[Applied] = []

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
        return codec.CHUNK_BYTES + len(self._raw) + ROW_BYTES * self.row_count

    @property
    def is_done(self) -> bool:
        """Whether every row is answered."""
        return self._left_count == 0

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has gone; see `Owner`."""
        return self._is_cancelled

    @property
    def errors(self) -> list[ServiceError]:
        """What rows were refused with, so far."""
        return [outcome for outcome in self._outcomes.values() if isinstance(outcome, ServiceError)]

    def submit(self, engine: Engine) -> None:
        """Gives the rows to the engine."""
        for block in self._blocks():
            engine.submit_block(block)

    def cancel(self) -> None:
        """The caller has gone: rows that have not run yet are skipped."""
        self._is_cancelled = True
        for work in self._works.values():
            work.is_cancelled = True

    def applied(self, applied: Applied) -> None:
        """Takes rows that are committed; see `Owner`."""
        self._applied.append(applied)
        self._answered(len(applied.rows))

    def work(self, row: int) -> Work:
        """Returns a row as a chunk of its own, the same one each time; see `Owner`."""
        work = self._works.get(row)
        if work is None:
            work = self._works[row] = Work(
                key=codec.key_of(self._tenant, self._session_ids[row]),
                asked=self._asked,
                claim=self._claim(row),
                raw=self._raw_of(row),
                answer=self._settled,
                request=row,
                deadline_s=self._deadline_s,
                is_cancelled=self._is_cancelled,
                is_answered=row in self._outcomes or any(row in applied.rows for applied in self._applied),
            )
        return work

    def reply(self) -> bytes:
        """Returns the serialised StepBatchResponse, which is also the serialised StreamBatchesResponse."""
        stamps = np.zeros((self.row_count, 3), np.int64)
        for applied in self._applied:
            stamps[applied.rows] = applied.stamps
        replayed, errors = [], []
        reached = {applied.ack_level for applied in self._applied}
        for row, outcome in sorted(self._outcomes.items()):
            if isinstance(outcome, ServiceError):
                errors.append(pb.RowError(row=row, status=to_status(outcome)))
                continue
            stamps[row] = outcome.incarnation, outcome.position, outcome.digest
            reached.add(outcome.ack_level)
            if outcome.replayed:
                replayed.append(row)
        result = pb.ColumnsResult(
            tag=self._tag,
            replayed_rows=replayed,
            errors=errors,
            ack_level=codec.ack_number(_common(reached)),
        )
        taken_bytes = result.ByteSize() + stamps.nbytes + _FRAME_BYTES + _ROW_FRAME_BYTES * self.row_count
        stack = self._stack(MAX_REPLY_BYTES - taken_bytes)
        result.model_version = stack.model_version
        result.separate_rows.extend(stack.separate)
        header = result.SerializeToString()
        for number, column in zip(_STAMP_FIELDS, stamps.T, strict=True):
            header += codec.delimited(number, column.tobytes())
        return codec.splice_outputs(header, stack.outputs)

    def _blocks(self) -> Iterator[Block]:
        """Yields the rows that are well-formed; answers the others."""
        positions, acknowledged, incarnations, digests = self._claimed
        keys, places = self._keys(
            _are_right(self._names_positions, self._asked.token_count, *self._claimed)
        )
        sums = sums_of(to_elements(self._tokens).reshape(self.row_count, -1))
        step = max(1, min(MAX_BLOCK_ROWS, MAX_BLOCK_STEPS // self._asked.token_count))
        for start in range(0, len(keys), step):
            rows = places[start : start + step]
            yield Block(
                owner=self,
                rows=rows,
                asked=self._asked,
                keys=keys[start : start + step],
                tokens=self._tokens[rows],
                sums=sums[rows],
                positions=positions[rows],
                acknowledged=None if acknowledged is None else acknowledged[rows],
                incarnations=None if incarnations is None else incarnations[rows],
                digests=None if digests is None else digests[rows],
                arrived_s=[],
                deadline_s=self._deadline_s,
            )

    def _keys(self, are_right: bool) -> tuple[list[bytes], NDArray[np.int64]]:
        """Returns the store keys of well-formed rows and their numbers; answers the others.

        Args:
            are_right: The numbers of all rows are in their range.
        """
        every = np.arange(self.row_count)
        if are_right:
            try:
                return codec.keys_of(self._tenant, self._session_ids), every
            except InvalidRequest:  # found again below, with its row
                pass
        keys, bad = [], []
        for row, session_id in enumerate(self._session_ids):
            try:
                key = codec.key_of(self._tenant, session_id, f"columns.session_ids[{row}]")
                rules.check(self._claim(row))
                keys.append(key)
            except InvalidRequest as error:
                bad.append(row)
                self._answer(row, error.without_trace())
        return keys, np.setdiff1d(every, bad)

    def _raw_of(self, row: int) -> bytes:
        size = len(self._raw) // self.row_count
        return self._raw[row * size : (row + 1) * size]

    def _claim(self, row: int) -> Claim:
        positions, acknowledged, incarnations, digests = self._claimed
        return Claim(
            token_count=self._asked.token_count,
            tokens=self._tokens[row],
            position=int(positions[row]) if self._names_positions else None,
            acknowledged=None if acknowledged is None else int(acknowledged[row]),
            incarnation=0 if incarnations is None else int(incarnations[row]),
            digest=0 if digests is None else int(digests[row]),
        )

    def _settled(self, work: Work, outcome: Answer | ServiceError) -> None:
        self._answer(work.request, outcome)

    def _answer(self, row: int, outcome: Answer | ServiceError) -> None:
        self._outcomes[row] = outcome
        self._answered(1)

    def _answered(self, count: int) -> None:
        self._left_count -= count
        if self._left_count == 0:
            self._works.clear()  # each of them holds this
            self._on_done()

    def _stack(self, room_bytes: int) -> "Stack":
        answers = {row: outcome for row, outcome in self._outcomes.items() if isinstance(outcome, Answer)}
        count = self.row_count * self._asked.token_count
        return stack_outputs(self.row_count, count, self._applied, answers, room_bytes)


def _tokens(columns: pb.Columns, limits: ColumnsLimits) -> tuple[Asked, bytes]:
    """Returns what all rows ask and their tokens, row-major, after all columns were checked."""
    rows, count = len(columns.session_ids), columns.tokens_per_row or 1
    if rows == 0:
        raise InvalidRequest("the message has no rows, expected at least 1", field="columns.session_ids")
    if rows > limits.max_rows:
        raise InvalidRequest(
            f"the message has {rows} rows, expected at most {limits.max_rows}", field="columns.session_ids"
        )
    if not 1 <= count <= limits.max_tokens:
        raise InvalidRequest(
            f"tokens_per_row is {count}, expected 1..{limits.max_tokens}", field="columns.tokens_per_row"
        )
    if rows * count > limits.max_message_tokens:
        raise InvalidRequest(
            f"the message has {rows * count} tokens, expected at most {limits.max_message_tokens}",
            field="columns.tokens_per_row",
        )
    for name in ("positions", "acknowledged_positions", "incarnations", "history_digests"):
        length = len(getattr(columns, name))
        if length not in (0, rows):
            raise InvalidRequest(f"{name} has {length} entries for {rows} rows", field=f"columns.{name}")
    kind = columns.WhichOneof("tokens")
    asked = Asked(kind, count, 1, columns.model.name, columns.model.version, codec.to_selection(columns))
    if kind == "text":
        _check_count("text", len(columns.text), rows, count)
        return asked, columns.text
    if kind == "ids":
        _check_count("ids.values", len(columns.ids.values), rows, count)
        return asked, np.array(columns.ids.values, TOKEN_DTYPES["ids"]).tobytes()
    if kind == "features":
        size_bytes = len(columns.features)
        if size_bytes == 0 or size_bytes % (4 * rows * count):
            raise InvalidRequest(
                f"features have {size_bytes} bytes, expected 4 * width for each of {rows} x {count} tokens",
                field="columns.features",
            )
        return asked._replace(width=size_bytes // (4 * rows * count)), columns.features
    raise InvalidRequest("columns have no tokens, expected text, ids or features", field="columns.tokens")


def _check_reply_size(asked: Asked, rows: int, limits: ColumnsLimits) -> None:
    """Refuses what the client could not receive. A wrong selection is for the rows to say."""
    named = (asked.model_name, asked.model_version)
    for model in limits.models:
        if named not in ((model.name, model.version), (model.name, 0)):
            continue
        size_bytes = rows * largest_reply_bytes(asked, model.contract)
        if size_bytes > MAX_REPLY_BYTES:
            raise ReplyTooLarge(
                f"the reply would have up to {size_bytes} bytes, a client receives at most "
                f"{MAX_REPLY_BYTES}: send fewer rows or ask for fewer outputs",
                field="columns.outputs",
            )


def _check_count(name: str, given: int, rows: int, count: int) -> None:
    if given != rows * count:
        raise InvalidRequest(
            f"{name} has {given} tokens, expected {count} for each of {rows} rows", field=f"columns.{name}"
        )


def _common(levels: set[AckLevel]) -> AckLevel:
    """Returns what all of the levels have; no level at all is MEMORY."""
    return functools.reduce(operator.and_, levels) if levels else AckLevel.MEMORY


Column = NDArray[np.int64]


def _claimed(columns: pb.Columns) -> tuple[Column, Column | None, Column | None, Column | None]:
    """Returns what rows claim: positions, acknowledged positions, incarnations and history digests.

    None is a column that is not given; positions that are not given are `NOT_GIVEN`.
    """
    rows = len(columns.session_ids)
    return (
        np.array(columns.positions or [NOT_GIVEN] * rows, np.int64),
        np.array(columns.acknowledged_positions, np.int64) if columns.acknowledged_positions else None,
        np.array(columns.incarnations, np.int64) if columns.incarnations else None,
        np.array(columns.history_digests, np.int64) if columns.history_digests else None,
    )


def _are_right(
    names_positions: bool,
    token_count: int,
    positions: Column,
    acknowledged: Column | None,
    incarnations: Column | None,
    digests: Column | None,
) -> bool:
    """Tells whether `rules.check` would let every row pass."""
    if names_positions and not (positions.min() >= 0 and positions.max() <= MAX_NUMBER - token_count):
        return False
    for column in (incarnations, digests):
        if column is not None and not (column.min() >= 0 and column.max() <= MAX_NUMBER):
            return False
    if digests is not None and not names_positions:
        return False
    if acknowledged is None:
        return True
    return bool(((acknowledged >= 0) & (acknowledged <= positions)).all())


# -- outputs --------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """One field of a serialised message: its number, and where its payload lies."""

    number: int
    payload: int
    end: int


_STAMP_FIELDS = (
    pb.ColumnsResult.INCARNATIONS_FIELD_NUMBER,
    pb.ColumnsResult.POSITIONS_FIELD_NUMBER,
    pb.ColumnsResult.HISTORY_DIGESTS_FIELD_NUMBER,
)
_TENSORS = pb.Outputs.TENSORS_FIELD_NUMBER
_NUMERIC = {
    pb.Outputs.TOP_IDS_FIELD_NUMBER,
    pb.Outputs.TOP_LOG_PROBS_FIELD_NUMBER,
    pb.Outputs.TOKEN_LOG_PROBS_FIELD_NUMBER,
}


class Stack(NamedTuple):
    """Outputs of all rows in one message.

    Attributes:
        outputs: Serialised Outputs, row-major; zero for rows that are not given or separate.
        model_version: Of the rows in it; 0 if there are none.
        separate: Rows laid out otherwise, or from another version of the model.
    """

    outputs: bytes
    model_version: int
    separate: list[pb.SeparateRow]


def stack_outputs(
    row_count: int,
    token_count: int,
    applied: Sequence[Applied],
    answers: Mapping[int, Answer],
    room_bytes: int = MAX_REPLY_BYTES,
) -> Stack:
    """Joins the serialised Outputs of rows into one.

    Args:
        row_count: B; entries of rows that are not given are zero.
        token_count: Of all rows together.
        applied: Rows that came in blocks.
        answers: Rows that were answered alone. The layout is that of rows which ran now, if there are any.
        room_bytes: What the outputs may take. Where columns would take more, every row is separate: kept
            replies may be to requests for more than was asked now, and refusals take room of their own.
    """
    first = _first(applied, answers)
    if first is None:
        return Stack(pb.Outputs(token_count=token_count).SerializeToString(), 0, [])
    template, version = first
    pieces: list[Applied | _Piece] = [*applied, *_pieces(answers)]
    if row_count * len(template) > room_bytes:
        rows = sorted(row for piece in pieces for row in piece.rows.tolist())
        separate = _separate_rows(rows, pieces, room_bytes)
        return Stack(pb.Outputs(token_count=token_count).SerializeToString(), 0, separate)
    head = pb.Outputs.FromString(template)
    columns = _columns_of(template, head)
    separate = []
    if len(applied) == 1 and len(applied[0].rows) == row_count:
        matrix = applied[0].outputs
    else:
        matrix, strangers = _align(row_count, template, version, columns, pieces)
        separate = _separate_rows(strangers, pieces, room_bytes - matrix.size)
    stacked = pb.Outputs(token_count=token_count, top_k=head.top_k)
    parts, tensors = [], iter(head.tensors)
    for field in columns:
        data = matrix[:, field.payload : field.end].tobytes()
        if field.number != _TENSORS:
            parts.append(codec.delimited(field.number, data))
            continue
        named = next(tensors)
        named.tensor.data = data
        named.tensor.shape[0] *= row_count  # of one row: its tokens, or 1
        stacked.tensors.append(named)
    return Stack(b"".join((stacked.SerializeToString(), *parts)), version, separate)


def _first(applied: Sequence[Applied], answers: Mapping[int, Answer]) -> tuple[bytes, int] | None:
    """Returns the outputs of a row that ran now, if there is one, and its model's version."""
    if applied:
        return applied[0].outputs[0].tobytes(), applied[0].model_version
    ran_first = sorted(answers.values(), key=lambda answer: answer.replayed)
    return (ran_first[0].outputs, ran_first[0].model_version) if ran_first else None


class _Piece(NamedTuple):
    """A row that was answered alone, as `Applied` has rows."""

    rows: NDArray[np.int64]
    model_version: int
    outputs: NDArray[np.uint8]


def _pieces(answers: Mapping[int, Answer]) -> Iterator[_Piece]:
    for row, answer in answers.items():
        outputs = np.frombuffer(answer.outputs, np.uint8)[np.newaxis]
        yield _Piece(np.array([row]), answer.model_version, outputs)


def _separate_rows(
    rows: Sequence[int], pieces: Sequence[Applied | _Piece], room_bytes: int
) -> list[pb.SeparateRow]:
    """Returns rows with their outputs, as far as there is room for these."""
    separate = []
    for row in rows:
        one = _separate(row, pieces)
        room_bytes -= one.ByteSize()
        if room_bytes < 0:
            one.ClearField("outputs")
        separate.append(one)
    return separate


def _separate(row: int, pieces: Sequence[Applied | _Piece]) -> pb.SeparateRow:
    for piece in pieces:
        if len(places := np.flatnonzero(piece.rows == row)):
            outputs = pb.Outputs.FromString(piece.outputs[places[0]].tobytes())
            outputs.ClearField("state")  # kept from a Step; columns give none
            return pb.SeparateRow(row=row, model_version=piece.model_version, outputs=outputs)
    raise AssertionError("bug: a row that was not answered is laid out otherwise")


def _columns_of(template: bytes, head: pb.Outputs) -> list[_Field]:
    """Returns the fields that hold numbers, payloads narrowed to the numbers themselves."""
    columns, tensors = [], iter(head.tensors)
    for field in _fields(template):
        if field.number in _NUMERIC:
            columns.append(field)
        elif field.number == _TENSORS:  # its data come last in the tensor, and the tensor in the field
            columns.append(field._replace(payload=field.end - len(next(tensors).tensor.data)))
    return columns


def _align(
    row_count: int,
    template: bytes,
    version: int,
    columns: Sequence[_Field],
    pieces: Sequence[Applied | _Piece],
) -> tuple[NDArray[np.uint8], list[int]]:
    """Returns rows as bytes (B, n), zero where missing or unlike the template; and the latter."""
    size = len(template)
    matrix = np.zeros((row_count, size), np.uint8)
    is_given = np.zeros(row_count, np.bool_)
    for piece in pieces:
        is_given[piece.rows] = True
        if piece.outputs.shape[1] == size and piece.model_version == version:
            matrix[piece.rows] = piece.outputs
    is_frame = np.ones(size, np.bool_)
    for field in columns:
        is_frame[field.payload : field.end] = False
    frame = np.frombuffer(template, np.uint8)[is_frame]
    strangers = np.flatnonzero(is_given & (matrix[:, is_frame] != frame).any(axis=1))
    matrix[strangers] = 0
    return matrix, strangers.tolist()


def _fields(message: bytes) -> list[_Field]:
    """Walks the top level of a serialised Outputs, which has varints and delimited fields only."""
    fields = []
    offset = 0
    while offset < len(message):
        tag, offset = _read_varint(message, offset)
        value, offset = _read_varint(message, offset)
        payload = offset
        if tag & 7 == 2:
            offset += value
        fields.append(_Field(tag >> 3, payload, offset))
    return fields


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
