"""SaveCheckpoint, ListCheckpoints, DeleteCheckpoint and RestoreCheckpoint."""

from typing import Any

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.checkpoints import Checkpoints
from service.engine.meant import Meant
from service.engine.sessions import Sessions
from service.rpc import codec
from service.rpc.call import Call
from service.rpc.rpcs import Functions
from service.rpc.session_message import session_message
from service.store.beside import CheckpointHead


class CheckpointRpcs:
    """Implements the rpcs about checkpoints.

    Args:
        checkpoints: Saves and restores them.
        sessions: Knows when a session expires.
    """

    def __init__(self, checkpoints: Checkpoints, sessions: Sessions) -> None:
        self._checkpoints = checkpoints
        self._sessions = sessions

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {
            "SaveCheckpoint": self.save_checkpoint,
            "ListCheckpoints": self.list_checkpoints,
            "DeleteCheckpoint": self.delete_checkpoint,
            "RestoreCheckpoint": self.restore_checkpoint,
        }

    async def save_checkpoint(
        self, request: pb.SaveCheckpointRequest, call: Call
    ) -> pb.SaveCheckpointResponse:
        """Keeps a session under a name."""
        key, name = self._key(request, call), codec.check_id(request.name, "name")
        position = request.position if request.HasField("position") else None
        saved = await self._checkpoints.save(key, name, Meant(position, request.incarnation))
        return pb.SaveCheckpointResponse(checkpoint=_message(saved))

    async def list_checkpoints(
        self, request: pb.ListCheckpointsRequest, call: Call
    ) -> pb.ListCheckpointsResponse:
        """Lists the checkpoints of a session."""
        listed = await self._checkpoints.list(self._key(request, call))
        return pb.ListCheckpointsResponse(checkpoints=map(_message, listed))

    async def delete_checkpoint(
        self, request: pb.DeleteCheckpointRequest, call: Call
    ) -> pb.DeleteCheckpointResponse:
        """Deletes a checkpoint."""
        await self._checkpoints.delete(self._key(request, call), codec.check_id(request.name, "name"))
        return pb.DeleteCheckpointResponse()

    async def restore_checkpoint(
        self, request: pb.RestoreCheckpointRequest, call: Call
    ) -> pb.RestoreCheckpointResponse:
        """Puts a session back to a checkpoint."""
        key, name = self._key(request, call), codec.check_id(request.name, "name")
        session = await self._checkpoints.restore(key, name, request.incarnation, request.nonce)
        expires_in_s = await self._sessions.expires_in_s(key)
        message = session_message(
            request.session_id, session.record, session.model, expires_in_s, session.cursor
        )
        return pb.RestoreCheckpointResponse(session=message)

    def _key(self, request: Any, call: Call) -> bytes:
        call.session_id = request.session_id
        return codec.key_of(call.caller.tenant, request.session_id)


def _message(head: CheckpointHead) -> pb.Checkpoint:
    return pb.Checkpoint(
        name=head.name,
        position=head.position,
        history_digest=head.digest,
        saved_unix_s=head.saved_s,
        size_bytes=head.size_bytes,
    )
