"""OpenBatch between messages and the engine's values. Pure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.sessions import OpenSession
from service.model.protocol import Model
from service.rpc import codec
from service.rpc.status import to_status


def opening_keys(request: pb.OpenBatchRequest, tenant: str, max_rows: int) -> list[bytes | InvalidRequest]:
    """Returns the store key of each session to open, or why its id is none.

    Args:
        request: As received.
        tenant: Whose sessions they are.
        max_rows: Most of them.

    Raises:
        InvalidRequest: The request as a whole is wrong; no session was touched.
    """
    check_ids(request.session_ids, max_rows)
    if not request.model.name:
        raise InvalidRequest("model.name is empty", field="model.name")
    if request.model.version < 0:
        raise InvalidRequest(
            f"model.version is {request.model.version}, expected >= 0", field="model.version"
        )
    return row_keys(request.session_ids, tenant)


def check_ids(session_ids: Sequence[str], max_rows: int, field: str = "session_ids") -> None:
    """Makes sure that a message names a number of sessions that it may.

    Raises:
        InvalidRequest: It names none, too many, or one twice.
    """
    count = len(session_ids)
    if not 1 <= count <= max_rows:
        raise InvalidRequest(f"the message has {count} sessions, expected 1..{max_rows}", field=field)
    if len(set(session_ids)) < count:
        raise InvalidRequest("a session id occurs twice in one message", field=field)


def row_keys(
    session_ids: Sequence[str], tenant: str, field: str = "session_ids"
) -> list[bytes | InvalidRequest]:
    """Returns the store key of each session, or why its id is none."""
    return [_key(tenant, f"{field}[{row}]", session_id) for row, session_id in enumerate(session_ids)]


def _key(tenant: str, field: str, session_id: str) -> bytes | InvalidRequest:
    try:
        return codec.key_of(tenant, session_id)
    except InvalidRequest as error:
        return InvalidRequest(error.message, field=field)


def given_states(request: pb.OpenBatchRequest) -> dict[str, NDArray[Any]]:
    """Returns the state that the rows are to begin at, (B, ...) by name; empty for the model's own.

    Raises:
        InvalidRequest: One is no tensor, or has another number of rows.
    """
    count = len(request.session_ids)
    arrays = codec.to_arrays(request.initial_state, "initial_state")
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise InvalidRequest(
                f"state {name!r} has shape {list(array.shape)}, expected a row for each of "
                f"{count} sessions",
                field="initial_state",
            )
    return arrays


def state_of(arrays: Mapping[str, NDArray[Any]], row: int | None = None) -> Callable[[Model], bytes]:
    """Returns what gives the raw state of an opening, see `Opening`.

    Args:
        arrays: What a caller gives, by name.
        row: Which of them, where axis 0 is the row.
    """
    return functools.partial(_raw_state, arrays, row)


def _raw_state(arrays: Mapping[str, NDArray[Any]], row: int | None, model: Model) -> bytes:
    given = arrays if row is None else {name: array[row, ...] for name, array in arrays.items()}
    return codec.to_raw_state(given, model.contract, "initial_state")


def opening_reply(outcomes: Sequence[OpenSession | ServiceError]) -> pb.OpenBatchResponse:
    """Writes what came of each row."""
    reply = pb.OpenBatchResponse()
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, ServiceError):
            reply.errors.add(row=row, status=to_status(outcome))
            position = incarnation = digest = version = 0
            cursor = b""
        else:
            cursor = outcome.cursor
            record, version = outcome.record, outcome.model.version
            position, incarnation, digest = record.position, record.incarnation, record.digest
            if outcome.is_resumed:
                reply.resumed_rows.append(row)
        reply.positions.append(position)
        reply.incarnations.append(incarnation)
        reply.history_digests.append(digest)
        reply.model_versions.append(version)
        reply.cursors.append(cursor)
    if not any(reply.cursors):
        del reply.cursors[:]
    return reply
