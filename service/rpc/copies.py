"""ForkSession, ExportSession and ImportSession."""

from collections.abc import Sequence

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.copies import Copies, Forked
from service.engine.meant import Meant
from service.engine.sessions import new_session_id
from service.rpc import codec
from service.rpc.batches import ROW_BYTES
from service.rpc.call import Call
from service.rpc.openings import check_ids, row_keys
from service.rpc.rpcs import Functions
from service.rpc.session_message import model_ref, session_message
from service.rpc.status import to_status
from service.store.blob import BlobError, decode_blob
from service.store.record import Record


class CopyRpcs:
    """Implements the rpcs that copy sessions.

    Args:
        copies: Makes the copies.
        max_rows: Most copies of a message.
    """

    def __init__(self, copies: Copies, *, max_rows: int) -> None:
        self._copies = copies
        self._max_rows = max_rows

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {
            "ForkSession": self.fork_session,
            "ExportSession": self.export_session,
            "ImportSession": self.import_session,
        }

    async def fork_session(self, request: pb.ForkSessionRequest, call: Call) -> pb.ForkSessionResponse:
        """Copies a session to new ids."""
        call.session_id = request.session_id
        tenant = call.caller.tenant
        source = codec.key_of(tenant, request.session_id)
        ids = list(request.new_session_ids) or [new_session_id()]
        check_ids(ids, self._max_rows, "new_session_ids")
        call.row_count = len(ids)
        keys = row_keys(ids, tenant, "new_session_ids")
        good = [key for key in keys if isinstance(key, bytes)]
        call.share.take(len(ids) - 1, ROW_BYTES * len(ids))
        forked = await self._copies.fork(
            source,
            good,
            _expected(request),
            request.nonce,
            lambda size_bytes: call.share.take(0, size_bytes),
        )
        copies = iter(forked.copies)
        outcomes = [next(copies) if isinstance(key, bytes) else key for key in keys]
        call.rows_failed([outcome for outcome in outcomes if isinstance(outcome, ServiceError)])
        return fork_reply(ids, forked, outcomes)

    async def export_session(
        self, request: pb.ExportSessionRequest, call: Call
    ) -> pb.ExportSessionResponse:
        """Returns a session as a blob."""
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        blob, position = await self._copies.export(key, _expected(request))
        return pb.ExportSessionResponse(blob=blob, position=position)

    async def import_session(
        self, request: pb.ImportSessionRequest, call: Call
    ) -> pb.ImportSessionResponse:
        """Makes a session of a blob."""
        call.session_id = session_id = request.session_id or new_session_id()
        key = codec.key_of(call.caller.tenant, session_id)
        call.share.take(0, len(request.blob))
        try:
            exported = decode_blob(request.blob)
        except BlobError as error:
            raise InvalidRequest(f"the blob is not an exported session: {error}", field="blob") from None
        record, model, expires_in_s = await self._copies.import_(key, exported, request.nonce)
        return pb.ImportSessionResponse(
            session=session_message(session_id, record, model, expires_in_s, exported.cursor)
        )


def _expected(request: pb.ForkSessionRequest | pb.ExportSessionRequest) -> Meant:
    position = request.position if request.HasField("position") else None
    return Meant(position, request.incarnation)


def fork_reply(
    ids: Sequence[str], forked: Forked, outcomes: Sequence[Record | ServiceError]
) -> pb.ForkSessionResponse:
    """Writes what came of each copy."""
    reply = pb.ForkSessionResponse(
        position=forked.record.position,
        history_digest=forked.record.digest,
        model=model_ref(forked.model),
        new_session_ids=ids,
    )
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, ServiceError):
            reply.errors.add(row=row, status=to_status(outcome))
            reply.incarnations.append(0)
        else:
            reply.incarnations.append(outcome.incarnation)
    return reply
