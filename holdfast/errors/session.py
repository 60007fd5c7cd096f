"""What the service says of a session: it is gone, held, another one, or stands elsewhere.

The docstring of a class is its section of docs/errors.md: what the error means, then what caused it, what
happened to the tokens, what to do after a step, a stream and a batch (one where it does not occur is left
out), what else is to say of a retry, and why it counts as an error of the service or does not.
"""

from holdfast.errors.base import ServiceError


class SessionNotFound(ServiceError):
    """Nothing is stored under the id, and nothing says that it should be.

    Cause: It was never opened, it is another tenant's, or it ended so long ago that this is forgotten.
    Tokens: Gone with the session.
    Step: Open it to begin anew.
    Stream: The same.
    Batch: `open_batch`, and begin anew.
    Objective: No such id.
    """

    reason = "SESSION_NOT_FOUND"
    code = "NOT_FOUND"


class SessionLost(ServiceError):
    """A session that ran is gone from the store: the client has seen steps that the store does not know.

    The client makes good a loss as far as `replay_tokens` reach; what reaches the caller is older.

    Cause: A fail-over to a replica that lagged, a store without its file, an older copy, deleted keys.
    Tokens: The store has lost more than this client keeps (`replay_tokens`).
    Step: Open it, and feed it again from its position.
    Stream: The same.
    Batch: A pipeline keeps none: send again from `expected_position`.
    Objective: Kept badly.
    """

    reason = "SESSION_LOST"
    code = "NOT_FOUND"
    counts_against_objective = True


class SessionExpired(ServiceError):
    """The session was idle for longer than its time to live.

    Cause: No chunk came within `--session-ttl-s`.
    Tokens: Gone with the session.
    Step: Open it to begin anew.
    Stream: The same.
    Batch: `open_batch`, and begin anew.
    Objective: Idle for longer than its time to live.
    """

    reason = "SESSION_EXPIRED"
    code = "NOT_FOUND"


class SessionDeleted(ServiceError):
    """The session, or this incarnation of it, is over: deleted, opened again, or taken over by a writer.

    What this writer has not had answered may or may not have been applied before.

    Cause: Somebody deleted it, or another writer opened it with `take_over=True`.
    Tokens: Not applied; pending ones in doubt.
    Step: Stop; open it to begin anew.
    Stream: The same.
    Batch: The same for the row.
    Objective: The client, or its successor, deleted it.
    """

    reason = "SESSION_DELETED"
    code = "NOT_FOUND"


class SessionExists(ServiceError):
    """A new session was asked for, and the id is taken.

    Cause: `must_be_new`, a copy or an import, under the id of a session that is there.
    Tokens: No session was opened.
    Step: Another id, or without `must_be_new`.
    Batch: The same for the row.
    Objective: The id is taken.
    """

    reason = "SESSION_EXISTS"
    code = "ALREADY_EXISTS"


class PositionConflict(ServiceError):
    """Other tokens were applied at this position; `expected_position` is where the session stands.

    Cause: Two writers step one session, or one that was restarted goes on without the position it was told.
    Tokens: Not applied: another writer stepped the session; pending ones in doubt.
    Step: Stop, or open the session again and go on from its position.
    Stream: The same.
    Batch: The same for the row.
    Objective: Two writers; see HoldfastPositionConflicts.
    """

    reason = "POSITION_CONFLICT"
    code = "ABORTED"


class HistoryConflict(ServiceError):
    """The session stands at this position, but not after the tokens that this client has seen applied.

    The store has lost some of them, and another writer has gone on from there. Nothing was applied.

    Cause: A loss of the store, as after SESSION_LOST, and another writer since.
    Tokens: Not applied: the session has other tokens than you saw applied; pending ones in doubt.
    Step: Open it again, compare, and feed it again.
    Stream: The same.
    Batch: The same for the row.
    Objective: Kept badly.
    """

    reason = "HISTORY_CONFLICT"
    code = "ABORTED"
    counts_against_objective = True


class PositionGap(ServiceError):
    """Tokens before this position are missing; `expected_position` is where the session stands.

    Cause: The caller left tokens out; or the store lost some, and the chunk has neither digest nor
        acknowledged position, by which that could be told.
    Tokens: Not applied: tokens before them are missing.
    Step: Go on at `expected_position`.
    Batch: Send the missing tokens first.
    Objective: The client left tokens out.
    """

    reason = "POSITION_GAP"
    code = "OUT_OF_RANGE"


class StoreRegressed(ServiceError):
    """The store has lost steps that it had acknowledged; `expected_position` is where to send again from.

    The client sends again what it keeps (`replay_tokens`); what reaches the caller is older than that.

    Cause: A fail-over to a replica that lagged, a store that was killed or restored from an older copy.
    Tokens: The store has lost more than this client keeps (`replay_tokens`).
    Step: Open it, and feed it again from its position.
    Stream: The same.
    Batch: A pipeline keeps none: send again from `expected_position`.
    Objective: Kept badly.
    """

    reason = "STORE_REGRESSED"
    code = "DATA_LOSS"
    counts_against_objective = True


class RecordCorrupt(ServiceError):
    """The stored record is damaged; it is left as found.

    Cause: Somebody else writes to the store's keys, memory or a disk fails; of an import, a damaged blob.
    Tokens: Not applied: the session is held.
    Step: `holdfast session release ID --discard`, then open it and feed it again.
    Stream: The same.
    Batch: The same for the row.
    Objective: Kept badly.
    """

    reason = "RECORD_CORRUPT"
    code = "DATA_LOSS"
    counts_against_objective = True


class ModelMismatch(ServiceError):
    """The session runs on another model than the one asked for or served.

    Cause: The call names another model or version than the session's, or that version's file was replaced.
    Tokens: Not applied.
    Step: Use the model and version that the session has.
    Stream: The same.
    Batch: The same.
    Objective: The session runs on another model.
    """

    reason = "MODEL_MISMATCH"
    code = "FAILED_PRECONDITION"


class SessionQuarantined(ServiceError):
    """The session failed again and again and is held, with its state, until an administrator releases it.

    Cause: It failed by itself `--quarantine-after` times in a row: the model raises or stalls on it.
    Tokens: Not applied: the session is held.
    Step: `holdfast session release ID`, once what fails is mended: the tokens or the model.
    Stream: The same.
    Batch: The same for the row.
    Objective: One held session would count with every retry; see HoldfastSessionsQuarantined.
    """

    reason = "SESSION_QUARANTINED"
    code = "FAILED_PRECONDITION"
