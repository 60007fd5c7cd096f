"""Columns: one message with the next tokens of many sessions, and one reply to it.

Rows are chunks like any other: they share batches with everything else that waits, and each of them
succeeds or fails alone. The replies of rows that gave the same outputs differ only in their numbers, never
in their layout, so a reply in columns is cut out of them without reading any single one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.engine import Engine
from service.engine.rules import Claim
from service.engine.work import Answer, Work
from service.errors import InvalidRequest, ServiceError
from service.rpc import codec
from service.rpc.status import to_status
from service.store.record import token_digest

_OTHER_LAYOUT = InvalidRequest(
    "the tokens are applied, but the reply to this row is laid out unlike the others', being kept from a "
    "request for other outputs, or from another version of the model: get it with Step, same position and "
    "tokens",
    field="columns.outputs",
)


class ColumnsCall:
    """One message on its way.

    Args:
        columns: As received.
        on_done: Called once, when every row is answered; possibly from `submit`.
        max_tokens: Most tokens of a row.
        deadline_s: Monotonic time after which the caller no longer waits.

    Raises:
        InvalidRequest, AckLevelUnsupported: The message as a whole is wrong; no row was touched.
    """

    def __init__(
        self,
        columns: pb.Columns,
        on_done: Callable[[], None],
        *,
        max_tokens: int,
        deadline_s: float | None = None,
    ) -> None:
        codec.check_model_and_level(columns, "columns")
        if not columns.model.name:
            raise InvalidRequest("columns.model.name is empty", field="columns.model.name")
        if columns.outputs.state:
            raise InvalidRequest(
                "columns give no state: read it with GetSession", field="columns.outputs.state"
            )
        self._columns = columns
        self._on_done = on_done
        kind, tokens = _row_tokens(columns, max_tokens)
        self._outcomes: list[Answer | ServiceError | None] = [None] * len(columns.session_ids)
        self._left_count = len(self._outcomes)
        self._works = self._make_works(kind, tokens, deadline_s)

    @property
    def row_count(self) -> int:
        """B."""
        return len(self._outcomes)

    @property
    def is_done(self) -> bool:
        """Whether every row is answered."""
        return self._left_count == 0

    def submit(self, engine: Engine) -> None:
        """Gives the rows to the engine."""
        for work in self._works:
            engine.submit(work)

    def cancel(self) -> None:
        """The caller has gone: rows that have not run yet are skipped."""
        for work in self._works:
            work.is_cancelled = True

    def reply(self) -> bytes:
        """Returns the serialised StepBatchResponse, which is also the serialised StreamBatchesResponse."""
        applied = [outcome if isinstance(outcome, Answer) else None for outcome in self._outcomes]
        stacked, strangers = stack_outputs(
            [answer.outputs if answer else None for answer in applied],
            self._columns.tokens_per_row or 1,
            template=next((answer.outputs for answer in applied if answer and not answer.replayed), None),
        )
        for row in strangers:
            applied[row], self._outcomes[row] = None, _OTHER_LAYOUT
        result = pb.ColumnsResult(
            tag=self._columns.tag,
            positions=[answer.position if answer else 0 for answer in applied],
            incarnations=[answer.incarnation if answer else 0 for answer in applied],
            replayed_rows=[
                row for row, answer in enumerate(applied) if answer is not None and answer.replayed
            ],
            errors=[
                pb.RowError(row=row, status=to_status(outcome))
                for row, outcome in enumerate(self._outcomes)
                if isinstance(outcome, ServiceError)
            ],
            ack_level=pb.ACK_LEVEL_MEMORY,
            model_version=max(
                (answer.model_version for answer in applied if answer is not None), default=0
            ),
        )
        return codec.splice_outputs(result.SerializeToString(), stacked)

    def _make_works(
        self, kind: codec.TokenKind, tokens: NDArray[Any], deadline_s: float | None
    ) -> list[Work]:
        columns = self._columns
        claims = self._claims(tokens)
        selection = codec.to_selection(columns)
        works = []
        for row, (session_id, claim) in enumerate(zip(columns.session_ids, claims, strict=True)):
            try:
                key = codec.key_of(session_id, f"columns.session_ids[{row}]")
            except InvalidRequest as error:
                self._answer(row, error)
                continue
            works.append(
                Work(
                    key=key,
                    claim=claim,
                    kind=kind,
                    tokens=tokens[row],
                    answer=partial(self._answer, row),
                    model_name=columns.model.name,
                    model_version=columns.model.version,
                    selection=selection,
                    deadline_s=deadline_s,
                )
            )
        return works

    def _claims(self, tokens: NDArray[Any]) -> list[Claim]:
        columns, count = self._columns, tokens.shape[1]
        size = tokens[0].nbytes
        raw = tokens.tobytes()
        return [
            Claim(
                count, token_digest(raw[row * size : (row + 1) * size]), position, acknowledged, incarnation
            )
            for row, position, acknowledged, incarnation in zip(
                range(len(tokens)),
                columns.positions or [None] * len(tokens),
                columns.acknowledged_positions or [None] * len(tokens),
                columns.incarnations or [0] * len(tokens),
                strict=True,
            )
        ]

    def _answer(self, row: int, outcome: Answer | ServiceError) -> None:
        self._outcomes[row] = outcome
        self._left_count -= 1
        if self._left_count == 0:
            self._on_done()


def _row_tokens(columns: pb.Columns, max_tokens: int) -> codec.Tokens:
    """Returns the tokens, (B, T) ids or (B, T, width) features, after all columns were checked."""
    rows, count = len(columns.session_ids), columns.tokens_per_row or 1
    if rows == 0:
        raise InvalidRequest("the message has no rows, expected at least 1", field="columns.session_ids")
    if not 1 <= count <= max_tokens:
        raise InvalidRequest(
            f"tokens_per_row is {count}, expected 1..{max_tokens}", field="columns.tokens_per_row"
        )
    if len(set(columns.session_ids)) < rows:
        raise InvalidRequest("a session id occurs twice in one message", field="columns.session_ids")
    for name in ("positions", "acknowledged_positions", "incarnations"):
        length = len(getattr(columns, name))
        if length not in (0, rows):
            raise InvalidRequest(f"{name} has {length} entries for {rows} rows", field=f"columns.{name}")
    kind = columns.WhichOneof("tokens")
    if kind == "text":
        _check_count("text", len(columns.text), rows, count)
        return "text", np.frombuffer(columns.text, np.uint8).astype(np.int64).reshape(rows, count)
    if kind == "ids":
        _check_count("ids.values", len(columns.ids.values), rows, count)
        return "ids", np.array(columns.ids.values, np.int64).reshape(rows, count)
    if kind == "features":
        size_bytes = len(columns.features)
        if size_bytes == 0 or size_bytes % (4 * rows * count):
            raise InvalidRequest(
                f"features have {size_bytes} bytes, expected 4 * width for each of {rows} x {count} tokens",
                field="columns.features",
            )
        return "features", np.frombuffer(columns.features, "<f4").reshape(rows, count, -1)
    raise InvalidRequest("columns have no tokens, expected text, ids or features", field="columns.tokens")


def _check_count(name: str, given: int, rows: int, count: int) -> None:
    if given != rows * count:
        raise InvalidRequest(
            f"{name} has {given} tokens, expected {count} for each of {rows} rows", field=f"columns.{name}"
        )


# -- outputs --------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """One field of a serialised message: its number, and where its payload lies."""

    number: int
    payload: int
    end: int


_TENSORS = pb.Outputs.TENSORS_FIELD_NUMBER
_NUMERIC = {
    pb.Outputs.TOP_IDS_FIELD_NUMBER,
    pb.Outputs.TOP_LOG_PROBS_FIELD_NUMBER,
    pb.Outputs.TOKEN_LOG_PROBS_FIELD_NUMBER,
}


def stack_outputs(
    rows: Sequence[bytes | None], token_count: int, *, template: bytes | None = None
) -> tuple[bytes, list[int]]:
    """Joins the serialised Outputs of rows with `token_count` tokens each into one.

    Args:
        rows: B of them; None is a row that failed, whose entries are zero.
        token_count: T.
        template: The row whose layout counts; default is the first.

    Returns:
        Serialised Outputs of B * T tokens, row-major; and the rows with another layout, which are zero too.
    """
    template = template or next((outputs for outputs in rows if outputs is not None), None)
    if template is None:
        return pb.Outputs(token_count=len(rows) * token_count).SerializeToString(), []
    head = pb.Outputs.FromString(template)
    columns = _columns_of(template, head)
    matrix, strangers = _align(rows, template, columns)
    stacked = pb.Outputs(token_count=len(rows) * token_count, top_k=head.top_k)
    parts, tensors = [], iter(head.tensors)
    for field in columns:
        data = matrix[:, field.payload : field.end].tobytes()
        if field.number != _TENSORS:
            parts.append(codec.delimited(field.number, data))
            continue
        named = next(tensors)
        named.tensor.data = data
        named.tensor.shape[0] = len(rows) * token_count
        stacked.tensors.append(named)
    return b"".join((stacked.SerializeToString(), *parts)), strangers


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
    rows: Sequence[bytes | None], template: bytes, columns: Sequence[_Field]
) -> tuple[NDArray[np.uint8], list[int]]:
    """Returns rows as bytes (B, len(template)), zero where failed or laid out otherwise; and the latter."""
    size, nothing = len(template), bytes(len(template))
    fits = [outputs is not None and len(outputs) == size for outputs in rows]
    joined = b"".join(
        outputs if fit and outputs is not None else nothing for outputs, fit in zip(rows, fits, strict=True)
    )
    matrix = np.frombuffer(bytearray(joined), np.uint8).reshape(len(rows), size)
    is_frame = np.ones(size, np.bool_)
    for field in columns:
        is_frame[field.payload : field.end] = False
    frame = np.frombuffer(template, np.uint8)[is_frame]
    same = (matrix[:, is_frame] == frame).all(axis=1)
    strangers = [row for row, outputs in enumerate(rows) if outputs is not None and not same[row]]
    matrix[strangers] = 0
    return matrix, strangers


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
