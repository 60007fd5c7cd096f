"""Copies of sessions, as the client makes them: of one session, of many at once, from a blob."""

from typing import Any

from holdfast.client.calls import Calls
from holdfast.client.copy_requests import Where, fork_request, import_request, new_id_text
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, SessionId
from holdfast.client.status import from_status
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb


async def fork_one(
    calls: Calls, stub: Any, session_id: SessionId, new_id: SessionId | NewId, where: Where
) -> pb.OpenSessionResponse:
    """Copies a session to one id; returns the copy as if it had been opened, see `copied`."""
    request = fork_request(session_id, [new_id_text(new_id)], **where)
    deadline_s, attempt = calls.deadline_s(None), 0
    while True:
        forked = await calls.call("ForkSession", request, deadline_s=deadline_s, stub=stub)
        try:
            return copied(forked)
        except HoldfastError as error:  # of the copy, where the call itself has succeeded
            if not error.retryable:
                raise
            attempt += 1
            await calls.pause(error, attempt, deadline_s)


async def import_one(
    calls: Calls, stub: Any, blob: bytes, session_id: SessionId | NewId
) -> pb.OpenSessionResponse:
    """Makes a session of a blob; returns it as if it had been opened, see `copied`."""
    imported = await calls.call("ImportSession", import_request(blob, session_id), stub=stub)
    return pb.OpenSessionResponse(session=imported.session, resumed=True)


def copied(forked: pb.ForkSessionResponse) -> pb.OpenSessionResponse:
    """Returns the only copy as if it had been resumed, since its first state is not known here.

    Raises:
        HoldfastError: It was not made.
    """
    if forked.errors:
        raise from_status(forked.errors[0].status)
    session = pb.Session(
        session_id=forked.new_session_ids[0],
        incarnation=forked.incarnations[0],
        position=forked.position,
        history_digest=forked.history_digest,
        model=forked.model,
    )
    return pb.OpenSessionResponse(session=session, resumed=True)


def forked_batch(forked: pb.ForkSessionResponse) -> OpenedBatch:
    """Returns copies as if they had been opened together."""
    made = [int(incarnation > 0) for incarnation in forked.incarnations]
    return OpenedBatch(
        forked.new_session_ids,
        pb.OpenBatchResponse(
            positions=[one * forked.position for one in made],
            incarnations=forked.incarnations,
            history_digests=[one * forked.history_digest for one in made],
            model_versions=[one * forked.model.version for one in made],
            errors=forked.errors,
        ),
    )
