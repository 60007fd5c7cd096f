"""Errors of a session: it is gone, in quarantine, at another position, or on another model.

The docstring of a class is its section of docs/errors.md: what the error means, its cause, what happened to
the tokens, what to do after a step, a stream and a batch (left out where the error does not occur), what
else there is to say about a retry, and why it counts as an error of the service or does not.
"""

from holdfast.errors.base import ServiceError


class SessionNotFound(ServiceError):
    """Nothing is stored under the id, and nothing indicates that a session should be there.

    Cause: The session was never opened, belongs to another tenant, or ended too long ago to be remembered.
    Tokens: They are gone with the session.
    Step: Open the session to begin anew.
    Stream: The same.
    Batch: Call `open_batch`, and begin anew.
    Objective: There is no such id.
    """

    reason = "SESSION_NOT_FOUND"
    code = "NOT_FOUND"


class SessionLost(ServiceError):
    """The session is gone from the store, although the client has seen replies to its steps.

    The client library opens it again and resends its tokens, as far as `replay_tokens` reaches; you see
    this error only if the client no longer has all of them.

    Cause: The session expired while no replica had it in memory, so none can say SESSION_EXPIRED. Or the
        store lost it: a fail-over to a lagging replica, a store without its file, a restored older copy, or
        deleted keys.
    Tokens: They are gone with the session, and this client does not keep all of them (`replay_tokens`).
    Step: Open the session, which begins at position 0, and feed it again.
    Stream: The same.
    Batch: Call `open_batch`, and send all tokens from position 0; a batch keeps no tokens.
    Objective: What was acknowledged is gone; nothing tells a loss from an expiry.
    """

    reason = "SESSION_LOST"
    code = "NOT_FOUND"
    counts_against_objective = True


class SessionExpired(ServiceError):
    """The session was idle for longer than its time to live.

    Cause: No chunk arrived within `--session-ttl-s`.
    Tokens: They are gone with the session.
    Step: Open the session to begin anew.
    Stream: The same.
    Batch: Call `open_batch`, and begin anew.
    Objective: The session was idle for longer than its time to live.
    """

    reason = "SESSION_EXPIRED"
    code = "NOT_FOUND"


class SessionDeleted(ServiceError):
    """The session, or this incarnation of it, has ended: it was deleted, opened again or taken over.

    Chunks of this writer that have no reply may or may not have been applied before.

    Cause: Somebody deleted the session, or another writer opened it with `take_over=True`.
    Tokens: Not applied; pending ones are in doubt.
    Step: Stop, or open the session to begin anew.
    Stream: The same.
    Batch: The same for the row.
    Objective: The client or its successor deleted the session.
    """

    reason = "SESSION_DELETED"
    code = "NOT_FOUND"


class SessionExists(ServiceError):
    """The call requires a new session, and the id is taken.

    Cause: `must_be_new` was set, or the id is that of a copy or an import, and a session has it.
    Tokens: No session was opened.
    Step: Use another id, or leave out `must_be_new`.
    Batch: The same for the row.
    Objective: The id is taken.
    """

    reason = "SESSION_EXISTS"
    code = "ALREADY_EXISTS"


class CheckpointNotFound(ServiceError):
    """The session has no checkpoint of that name.

    Cause: It was never saved, was deleted, or ended with an earlier session of this id.
    Tokens: Nothing was changed.
    Step: Use a name that `session.checkpoints()` lists.
    Objective: There is no such checkpoint.
    """

    reason = "CHECKPOINT_NOT_FOUND"
    code = "NOT_FOUND"


class TooManyCheckpoints(ServiceError):
    """The session has as many checkpoints as the server allows.

    Cause: It has `--max-checkpoints` of them; each takes the memory of a session in the store.
    Tokens: Nothing was changed.
    Step: Delete one by `session.delete_checkpoint(name)`, or save over one of the same name.
    Objective: The bound is the operator's.
    """

    reason = "TOO_MANY_CHECKPOINTS"
    code = "RESOURCE_EXHAUSTED"


class PositionConflict(ServiceError):
    """Other tokens were applied at this position; `expected_position` is the session's current position.

    Cause: Two writers step one session, or a restarted writer continues without the position that it was
        told.
    Tokens: Not applied, because another writer stepped the session; pending ones are in doubt.
    Step: Stop, or open the session again and continue from its position.
    Stream: The same.
    Batch: The same for the row.
    Objective: There are two writers; see HoldfastPositionConflicts.
    """

    reason = "POSITION_CONFLICT"
    code = "ABORTED"


class HistoryConflict(ServiceError):
    """The session is at this position, but not after the tokens that this client has seen applied.

    The store has lost some of them, and another writer has continued from there. Nothing was applied.

    Cause: The store lost steps, as for SESSION_LOST, and another writer has written since.
    Tokens: Not applied, because the session has other tokens than you saw applied; pending ones are in
        doubt.
    Step: Open the session again, compare its position with what you have sent, and feed it what it lacks.
    Stream: The same.
    Batch: The same for the row.
    Objective: The store lost what was acknowledged.
    """

    reason = "HISTORY_CONFLICT"
    code = "ABORTED"
    counts_against_objective = True


class PositionGap(ServiceError):
    """Tokens before this position are missing; `expected_position` is the session's current position.

    Cause: The caller left out tokens. Or the store lost some, and the chunk has neither a digest nor an
        acknowledged position, which would reveal the loss.
    Tokens: Not applied, because tokens before them are missing.
    Step: Continue at `expected_position`.
    Batch: Send the missing tokens first.
    Objective: The client left out tokens.
    """

    reason = "POSITION_GAP"
    code = "OUT_OF_RANGE"


class StoreRegressed(ServiceError):
    """The store has lost steps that it had acknowledged; send again from `expected_position`.

    The client library resends what it keeps (`replay_tokens`); you see this error for older losses only.

    Cause: A fail-over to a lagging replica, or a store that was killed or restored from an older copy.
    Tokens: The store has lost more than this client keeps (`replay_tokens`).
    Step: Open the session, and feed it again from its position.
    Stream: The same.
    Batch: A pipeline keeps no tokens: send again from `expected_position`.
    Objective: The store lost what was acknowledged.
    """

    reason = "STORE_REGRESSED"
    code = "DATA_LOSS"
    counts_against_objective = True


class RecordCorrupt(ServiceError):
    """The stored record is damaged; it is left as found.

    Cause: Somebody else writes to the store's keys, or memory or a disk fails.
    Tokens: Not applied, because the record cannot be used.
    Step: Run `holdfast session release ID --discard`, then open the session and feed it again.
    Stream: The same.
    Batch: The same for the row.
    Objective: The store damaged what was acknowledged.
    """

    reason = "RECORD_CORRUPT"
    code = "DATA_LOSS"
    counts_against_objective = True


class ModelMismatch(ServiceError):
    """The session runs on another model than the one that was requested or is served.

    Cause: The call names another model or version than the session's, or the file of that version was
        replaced.
    Tokens: Not applied.
    Step: Use the model and version of the session.
    Stream: The same.
    Batch: The same.
    Objective: The session runs on another model.
    """

    reason = "MODEL_MISMATCH"
    code = "FAILED_PRECONDITION"


class SessionQuarantined(ServiceError):
    """The session failed repeatedly and stays in quarantine, with its state, until it is released.

    Cause: It failed by itself `--quarantine-after` times in a row: the model raises or stalls on its
        tokens.
    Tokens: Not applied, because the session is in quarantine.
    Step: Correct what fails, the tokens or the model. Then an administrator has to run
        `holdfast session release ID`.
    Stream: The same.
    Batch: The same for the row.
    Objective: One such session would count with every retry; see HoldfastSessionsQuarantined.
    """

    reason = "SESSION_QUARANTINED"
    code = "FAILED_PRECONDITION"
