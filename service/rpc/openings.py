"""OpenBatch between messages and the engine's values. Pure."""

from collections.abc import Sequence

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.sessions import OpenSession
from service.errors import InvalidRequest, ServiceError
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
    count = len(request.session_ids)
    if not 1 <= count <= max_rows:
        raise InvalidRequest(
            f"the message has {count} sessions, expected 1..{max_rows}", field="session_ids"
        )
    if not request.model.name:
        raise InvalidRequest("model.name is empty", field="model.name")
    if request.model.version < 0:
        raise InvalidRequest(
            f"model.version is {request.model.version}, expected >= 0", field="model.version"
        )
    if len(set(request.session_ids)) < count:
        raise InvalidRequest("a session id occurs twice in one message", field="session_ids")
    return [_key(tenant, row, session_id) for row, session_id in enumerate(request.session_ids)]


def _key(tenant: str, row: int, session_id: str) -> bytes | InvalidRequest:
    try:
        return codec.key_of(tenant, session_id)
    except InvalidRequest as error:
        return InvalidRequest(error.message, field=f"session_ids[{row}]")


def opening_reply(outcomes: Sequence[OpenSession | ServiceError]) -> pb.OpenBatchResponse:
    """Writes what came of each row."""
    reply = pb.OpenBatchResponse()
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, ServiceError):
            reply.errors.add(row=row, status=to_status(outcome))
            position = incarnation = digest = version = 0
        else:
            record, version = outcome.record, outcome.model.version
            position, incarnation, digest = record.position, record.incarnation, record.digest
            if outcome.is_resumed:
                reply.resumed_rows.append(row)
        reply.positions.append(position)
        reply.incarnations.append(incarnation)
        reply.history_digests.append(digest)
        reply.model_versions.append(version)
    return reply
