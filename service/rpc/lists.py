"""ListSessions and DeleteBatch."""

import math
from collections.abc import Sequence

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.history_digest import MAX_NUMBER
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.deletions import Deletions
from service.engine.listing import Listed, SessionList, Wanted
from service.rpc.batches import ROW_BYTES
from service.rpc.call import Call
from service.rpc.codec import MAX_ID_CHARS
from service.rpc.openings import check_ids, row_keys
from service.rpc.page_token import decode_token, encode_token
from service.rpc.rpcs import Functions
from service.rpc.session_message import model_ref
from service.rpc.status import to_status
from service.store.record import Record

MAX_PAGE = 1000
DEFAULT_PAGE = 100


class ListRpcs:
    """Implements the rpcs that are about any number of a caller's sessions.

    Args:
        sessions: Lists them.
        deletions: Deletes them.
        max_rows: Most rows of a batch.
    """

    def __init__(self, sessions: SessionList, deletions: Deletions, *, max_rows: int) -> None:
        self._sessions = sessions
        self._deletions = deletions
        self._max_rows = max_rows

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {"ListSessions": self.list_sessions, "DeleteBatch": self.delete_batch}

    async def list_sessions(self, request: pb.ListSessionsRequest, call: Call) -> pb.ListSessionsResponse:
        """Returns a page of the caller's sessions."""
        wanted, size = to_wanted(request, call.caller.tenant), page_size(request)
        begin = self._sessions.beginning()
        assert begin.place is not None, "bug: a list begins somewhere"
        layout = begin.place.layout
        if request.page_token:
            begin = decode_token(request.page_token, wanted, layout)
        listed, following = await self._sessions.page(wanted, begin, size)
        return pb.ListSessionsResponse(
            sessions=map(listed_message, listed),
            next_page_token=encode_token(following, wanted, layout) if following is not None else "",
        )

    async def delete_batch(self, request: pb.DeleteBatchRequest, call: Call) -> pb.DeleteBatchResponse:
        """Deletes sessions."""
        ids, incarnations = request.session_ids, list(request.incarnations)
        check_ids(ids, self._max_rows)
        if len(incarnations) not in (0, len(ids)):
            raise InvalidRequest(
                f"there are {len(incarnations)} incarnations for {len(ids)} sessions", field="incarnations"
            )
        call.row_count = len(ids)
        call.share.take(len(ids) - 1, ROW_BYTES * len(ids))
        meant: dict[bytes, int] = {}
        outcomes: list[Record | ServiceError | bytes] = []
        for row, key in enumerate(row_keys(ids, call.caller.tenant)):
            incarnation = incarnations[row] if incarnations else 0
            if isinstance(key, bytes) and not 0 <= incarnation <= MAX_NUMBER:
                outcomes.append(_wrong_incarnation(row, incarnation))
                continue
            outcomes.append(key)
            if isinstance(key, bytes):
                meant[key] = incarnation
        deleted = dict(zip(meant, await self._deletions.delete(meant), strict=True))
        rows = [deleted[one] if isinstance(one, bytes) else one for one in outcomes]
        call.rows_failed([one for one in rows if isinstance(one, ServiceError)])
        return deletion_reply(rows)


def to_wanted(request: pb.ListSessionsRequest, tenant: str) -> Wanted:
    """Reads which sessions a caller wants to see.

    Raises:
        InvalidRequest: No session could be one of them.
    """
    model = request.model
    if len(request.prefix) > MAX_ID_CHARS:
        raise InvalidRequest(
            f"prefix has {len(request.prefix)} characters, expected at most {MAX_ID_CHARS}", field="prefix"
        )
    if model.version < 0:
        raise InvalidRequest(f"model.version is {model.version}, expected >= 0", field="model.version")
    if model.version and not model.name:
        raise InvalidRequest("model.name is empty, and a version is given", field="model.name")
    if not 0 <= request.min_idle_s < math.inf:
        raise InvalidRequest(
            f"min_idle_s is {request.min_idle_s}, expected seconds >= 0", field="min_idle_s"
        )
    return Wanted(tenant, request.prefix, model.name, model.version, request.min_idle_s)


def page_size(request: pb.ListSessionsRequest) -> int:
    """Reads how many sessions a page may have.

    Raises:
        InvalidRequest: It is out of its range.
    """
    if not 0 <= request.page_size <= MAX_PAGE:
        raise InvalidRequest(
            f"page_size is {request.page_size}, expected 1..{MAX_PAGE}, or 0 for {DEFAULT_PAGE}",
            field="page_size",
        )
    return request.page_size or DEFAULT_PAGE


def listed_message(listed: Listed) -> pb.Session:
    """Writes a session of a list."""
    head = listed.stored.head
    return pb.Session(
        session_id=listed.session_id,
        incarnation=head.incarnation,
        position=head.position,
        history_digest=head.digest,
        model=model_ref(listed.model) if listed.model is not None else None,
        fingerprint=head.fingerprint.hex(),
        expires_in_s=listed.stored.expires_in_s,
        quarantine_reason=listed.quarantine_reason,
        idle_s=listed.idle_s,
    )


def deletion_reply(rows: Sequence[Record | ServiceError]) -> pb.DeleteBatchResponse:
    """Writes what came of each row."""
    reply = pb.DeleteBatchResponse()
    for row, outcome in enumerate(rows):
        if isinstance(outcome, ServiceError):
            reply.errors.add(row=row, status=to_status(outcome))
            reply.positions.append(0)
        else:
            reply.positions.append(outcome.position)
    return reply


def _wrong_incarnation(row: int, incarnation: int) -> InvalidRequest:
    return InvalidRequest(
        f"incarnation is {incarnation}, expected 1..2^53 - 1, or 0 for any", field=f"incarnations[{row}]"
    )
