"""OpenSession, OpenBatch, GetSession, DeleteSession and ReleaseSession."""

from holdfast.errors import ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.sessions import Opening, OpenSession, Sessions, new_session_id
from service.rpc import codec
from service.rpc.batches import ROW_BYTES
from service.rpc.call import Call
from service.rpc.openings import given_states, opening_keys, opening_reply, state_of
from service.rpc.rpcs import Functions
from service.rpc.session_message import session_message


class SessionRpcs:
    """Implements the rpcs about sessions as such.

    Args:
        sessions: Opens, reads, deletes and releases sessions.
        max_rows: Most sessions of a batch.
    """

    def __init__(self, sessions: Sessions, *, max_rows: int) -> None:
        self._sessions = sessions
        self._max_rows = max_rows

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {
            "OpenSession": self.open_session,
            "OpenBatch": self.open_batch,
            "GetSession": self.get_session,
            "DeleteSession": self.delete_session,
            "ReleaseSession": self.release_session,
        }

    async def open_session(self, request: pb.OpenSessionRequest, call: Call) -> pb.OpenSessionResponse:
        """Opens or resumes a session."""
        call.session_id = session_id = request.session_id or new_session_id()
        key = codec.key_of(call.caller.tenant, session_id)
        opening = Opening(
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            take_over=request.take_over,
            nonce=request.nonce,
            state=state_of(codec.to_arrays(request.initial_state, "initial_state")),
        )
        del request  # its tensors are many times as large as what was sent
        session = await self._sessions.open(key, opening)
        return pb.OpenSessionResponse(
            session=await self._session_message(session_id, key, session),
            resumed=session.is_resumed,
        )

    async def open_batch(self, request: pb.OpenBatchRequest, call: Call) -> pb.OpenBatchResponse:
        """Opens or resumes many sessions."""
        keys = opening_keys(request, call.caller.tenant, self._max_rows)
        opening = Opening(
            request.model.name,
            request.model.version,
            must_be_new=request.must_be_new,
            nonce=request.nonce,
        )
        states = given_states(request)
        state_bytes = sum(array.nbytes for array in states.values())
        call.share.take(len(keys) - 1, ROW_BYTES * len(keys) + state_bytes)
        del request
        good = {row: key for row, key in enumerate(keys) if isinstance(key, bytes)}
        begins = [state_of(states, row) for row in good] if states else []
        opened = iter(await self._sessions.open_batch(list(good.values()), opening, begins))
        outcomes = [next(opened) if isinstance(key, bytes) else key for key in keys]
        call.rows_failed([outcome for outcome in outcomes if isinstance(outcome, ServiceError)])
        return opening_reply(outcomes)

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Reads a session."""
        call.session_id = request.session_id
        if request.include_state:
            call.caller.need("read-state", field="include_state")
        key = codec.key_of(call.caller.tenant, request.session_id)
        session = await self._sessions.read(key)
        state = []
        if request.include_state:
            state = codec.from_raw_state(session.record.state, session.model.contract)
        message = await self._session_message(request.session_id, key, session)
        return pb.GetSessionResponse(session=message, state=state)

    async def delete_session(
        self, request: pb.DeleteSessionRequest, call: Call
    ) -> pb.DeleteSessionResponse:
        """Deletes a session."""
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        position = await self._sessions.delete(key, request.incarnation)
        return pb.DeleteSessionResponse(position=position)

    async def release_session(
        self, request: pb.ReleaseSessionRequest, call: Call
    ) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is held, or moves its record aside."""
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        released = await self._sessions.release(key, discard=request.discard)
        return pb.ReleaseSessionResponse(reason=released.reason, position=released.position)

    async def _session_message(self, session_id: str, key: bytes, session: OpenSession) -> pb.Session:
        expires_in_s = await self._sessions.expires_in_s(key)
        return session_message(session_id, session.record, session.model, expires_in_s, session.cursor)
