"""The requests about checkpoints: a session as it was, kept under a name beside it and as long as it."""

from holdfast.client.calls import Calls
from holdfast.client.opening import draw_nonce
from holdfast.client.options import MAX_POSITION, SessionId, session_id_text, whole_number
from holdfast.v1 import holdfast_pb2 as pb


def checkpoint_name(value: str) -> str:
    """Returns the name of a checkpoint as the contract has it.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"the name of a checkpoint is {value!r:.80}, expected str")
    if not value:
        raise ValueError("the name of a checkpoint is '', expected 1 to 128 characters")
    return value


async def save_checkpoint(
    calls: Calls,
    session_id: SessionId,
    name: str,
    position: int | None,
    incarnation: int,
    deadline_s: float | None = None,
) -> pb.Checkpoint:
    """Does what `AsyncClient.save_checkpoint` says."""
    request = pb.SaveCheckpointRequest(
        session_id=session_id_text(session_id),
        name=checkpoint_name(name),
        incarnation=_incarnation(incarnation),
    )
    if position is not None:
        request.position = whole_number("position", position, at_least=0, at_most=MAX_POSITION)
    saved: pb.SaveCheckpointResponse = await calls.call("SaveCheckpoint", request, deadline_s=deadline_s)
    return saved.checkpoint


async def list_checkpoints(calls: Calls, session_id: SessionId) -> list[pb.Checkpoint]:
    """Does what `AsyncClient.checkpoints` says."""
    request = pb.ListCheckpointsRequest(session_id=session_id_text(session_id))
    listed: pb.ListCheckpointsResponse = await calls.call("ListCheckpoints", request)
    return list(listed.checkpoints)


async def delete_checkpoint(calls: Calls, session_id: SessionId, name: str) -> None:
    """Does what `AsyncClient.delete_checkpoint` says."""
    request = pb.DeleteCheckpointRequest(session_id=session_id_text(session_id), name=checkpoint_name(name))
    await calls.call("DeleteCheckpoint", request)


def restore_request(
    session_id: SessionId, name: str, incarnation: int, nonce: int = 0
) -> pb.RestoreCheckpointRequest:
    """Writes a request to put a session back.

    Args:
        session_id: Of the session.
        name: Of the checkpoint.
        incarnation: That the session must have; 0 is any.
        nonce: The same in every attempt; 0 draws one.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    return pb.RestoreCheckpointRequest(
        session_id=session_id_text(session_id),
        name=checkpoint_name(name),
        incarnation=_incarnation(incarnation),
        nonce=nonce or draw_nonce(),
    )


async def restore_checkpoint(
    calls: Calls, request: pb.RestoreCheckpointRequest, deadline_s: float | None = None
) -> pb.Session:
    """Puts a session back; returns it as it is then."""
    restored: pb.RestoreCheckpointResponse = await calls.call(
        "RestoreCheckpoint", request, deadline_s=deadline_s
    )
    return restored.session


def _incarnation(value: int) -> int:
    return whole_number("incarnation", value, at_least=0, at_most=MAX_POSITION)
