"""What the service says of a request, of who makes it, and of itself.

The parts of a docstring are those of `holdfast.errors.session`.
"""

from holdfast.errors.base import ServiceError


class InvalidRequest(ServiceError):
    """The request is wrong in itself; it would be wrong at any time.

    Cause: The field that `field` names; the message says what would be right.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Change the chunk; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Change the row or the message.
    Objective: The request is wrong in itself.
    """

    reason = "INVALID_REQUEST"
    code = "INVALID_ARGUMENT"


class StateNotFinite(ServiceError):
    """The step would leave NaN or infinity in the state; the old state stays.

    Cause: Tokens that the model was not trained for, or a model whose state grows without bound.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Change the chunk; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Change the row.
    Objective: These tokens lead there; the old state stays.
    """

    reason = "STATE_NOT_FINITE"
    code = "INVALID_ARGUMENT"


class ModelNotFound(ServiceError):
    """No model of that name and version is served.

    Cause: A wrong name, a version that is not in the models folder, or a file that was refused.
    Tokens: Not applied.
    Step: Use the model and version that the session has; to open one, a model that is served.
    Stream: The same.
    Batch: The same.
    Objective: Asked for what is not served.
    """

    reason = "MODEL_NOT_FOUND"
    code = "NOT_FOUND"


class AckLevelUnsupported(ServiceError):
    """The store cannot give the acknowledgement level.

    Cause: The store's settings, or fewer replicas than `--replicas-required`; docs/operate/durability.md
        has what a level needs.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Ask for another level; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Ask for another level.
    Objective: Asked for what is not offered.
    """

    reason = "ACK_LEVEL_UNSUPPORTED"
    code = "FAILED_PRECONDITION"


class AckLevelNotReached(ServiceError):
    """The chunk is applied but did not become as durable as was asked for within the time limit.

    Cause: A replica is missing or lags, or the store's disk syncs slowly; `--ack-timeout-s`.
    Tokens: Pending: applied, not as durable as asked.
    Step: Repeat it, or `settle()`: it is a replay and waits anew.
    Stream: `settle()`, then go on.
    Batch: Repeat it.
    Objective: Applied, and not as durable as promised.
    """

    reason = "ACK_LEVEL_NOT_REACHED"
    code = "UNAVAILABLE"
    retry_helps = True
    counts_against_objective = True


class Unauthenticated(ServiceError):
    """No valid credential came with the request.

    Cause: No token or certificate, or one that the server does not know or has revoked.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: The right credential or server, then repeat.
    Stream: The same.
    Batch: The same.
    Objective: No valid credential.
    """

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The credential is valid and does not allow this.

    Cause: It lacks the scope of the rpc: `step`, `read-state` or `admin`.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: The right credential or server, then repeat.
    Stream: The same.
    Batch: The same.
    Objective: The credential does not allow it.
    """

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class Overloaded(ServiceError):
    """A bound is reached: on waiting work, on memory, or on replies that the client has not acknowledged.

    Cause: More comes than the servers can do, a caller reads too slowly, or sends too far ahead.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Repeat it later.
    Stream: `settle()` later.
    Batch: Repeat it later.
    Retry: Helps, after the pause in `retry_after_s`, which the client library makes.
    Objective: Capacity is ours; a client that heeds the pause counts few.
    """

    reason = "OVERLOADED"
    code = "RESOURCE_EXHAUSTED"
    retry_helps = True
    counts_against_objective = True


class ReplyTooLarge(ServiceError):
    """The reply could not be kept for a retry: send fewer tokens or ask for fewer outputs.

    Cause: Outputs asked for, times tokens in the chunk, are more than a reply holds.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Change the chunk; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Change the row or the message.
    Objective: Asked for more than a reply holds.
    """

    reason = "REPLY_TOO_LARGE"
    code = "RESOURCE_EXHAUSTED"


class StoreFull(ServiceError):
    """The store has no memory left; sessions already stored are intact.

    Cause: More sessions than its `maxmemory` holds, or keys of others in the same store.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Repeat it later.
    Stream: `settle()` later.
    Batch: Repeat it later.
    Retry: Helps once the store has room again; the client library does not wait for that.
    Objective: Capacity is ours.
    """

    reason = "STORE_FULL"
    code = "RESOURCE_EXHAUSTED"
    counts_against_objective = True


class StoreUnavailable(ServiceError):
    """The store does not answer; a write under way may or may not have happened.

    Cause: The store is stopped, slow, failing over, or refuses what it is asked; the message has its words.
    Tokens: Pending: applied or not.
    Step: Repeat it, or `settle()`.
    Stream: `settle()`, then go on.
    Batch: Repeat it; without positions see where the sessions stand.
    Objective: The store is part of the service.
    """

    reason = "STORE_UNAVAILABLE"
    code = "UNAVAILABLE"
    retry_helps = True
    counts_against_objective = True


class Draining(ServiceError):
    """This server is leaving, or asks for a new connection; another one takes the same request.

    Cause: A rollout, a shutdown, or a connection older than `--max-connection-age-s`.
    Tokens: Pending: applied or not.
    Step: Repeat it, or `settle()`.
    Stream: `settle()`, then go on.
    Batch: Repeat it; without positions see where the sessions stand.
    Objective: Another replica takes the same chunk at once.
    """

    reason = "DRAINING"
    code = "UNAVAILABLE"
    retry_helps = True

    @property
    def is_goodbye(self) -> bool:
        """Whether it ends a stream on which all that was read is answered: go on elsewhere, at once."""
        return "requests_read" in self.metadata


class DeadlinePassed(ServiceError):
    """The time limit ran out. Said by a server, the chunk did not run, and nothing was changed.

    Cause: The servers are slower than the limit, or the connection is silent.
    Tokens: Pending: applied or not.
    Step: Repeat it, or `settle()`.
    Stream: `settle()`, then go on.
    Batch: Repeat it; without positions see where the sessions stand.
    Objective: Nothing came in time, whoever set the time.
    """

    reason = "DEADLINE_PASSED"
    code = "DEADLINE_EXCEEDED"
    retry_helps = True
    counts_against_objective = True

    @property
    def is_silence(self) -> bool:
        """Whether nothing was heard of the server in that time; else it is the server that says so."""
        return "grpc_code" in self.metadata


class ModelFailed(ServiceError):
    """The model raised, took too long, or broke its contract; nothing was changed.

    Cause: The model, or these tokens; the message and the server's log say what it did.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Change the chunk; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Change the row or the message.
    Objective: The model was let in by its check.
    """

    reason = "MODEL_FAILED"
    code = "INTERNAL"
    counts_against_objective = True


class InternalFailure(ServiceError):
    """A fault of the server; its log has the trace.

    Cause: A bug.
    Tokens: Pending: the server does not know.
    Step: Repeat it, or `settle()`; report it.
    Stream: `settle()`, then go on.
    Batch: Repeat it.
    Retry: Tells whether it was applied; the client library makes none by itself.
    Objective: A bug.
    """

    reason = "INTERNAL"
    code = "INTERNAL"
    counts_against_objective = True
