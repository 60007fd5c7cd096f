"""Errors of a request, of its caller, and of the service itself.

The parts of a docstring are those of `holdfast.errors.session`.
"""

from holdfast.errors.base import ServiceError


class InvalidRequest(ServiceError):
    """The request is invalid, whatever the state of the service.

    Cause: The field that `field` names is wrong; the message says what would be right.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Change the chunk; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Change the row or the message.
    Objective: The request is invalid.
    """

    reason = "INVALID_REQUEST"
    code = "INVALID_ARGUMENT"


class StateNotFinite(ServiceError):
    """The step would leave NaN or infinity in the state; the old state stays.

    Cause: The model was not trained for these tokens, or its state grows without limit.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Change the chunk; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Change the row.
    Objective: These tokens lead there, and the old state stays.
    """

    reason = "STATE_NOT_FINITE"
    code = "INVALID_ARGUMENT"


class ModelNotFound(ServiceError):
    """No model of that name and version is served.

    Cause: The name is wrong, the version is not in the models folder, or its file was refused.
    Tokens: Not applied.
    Step: Use the model and version of the session; to open one, use a model that is served.
    Stream: The same.
    Batch: The same.
    Objective: The model is not served.
    """

    reason = "MODEL_NOT_FOUND"
    code = "NOT_FOUND"


class AckLevelUnsupported(ServiceError):
    """The store cannot provide the acknowledgement level.

    Cause: The store's settings, or fewer replicas than `--replicas-required`; docs/operate/durability.md
        says what each level needs.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Request another level; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Request another level.
    Objective: The level is not offered.
    """

    reason = "ACK_LEVEL_UNSUPPORTED"
    code = "FAILED_PRECONDITION"


class AckLevelNotReached(ServiceError):
    """The chunk is applied, but did not reach the requested acknowledgement level within the time limit.

    Cause: A replica is missing or lags, or the store's disk syncs slowly; the limit is `--ack-timeout-s`.
    Tokens: Pending: applied, but less durable than requested.
    Step: Repeat it, or call `settle()`; it is a replay and waits again.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it.
    Objective: The chunk is applied, but less durable than promised.
    """

    reason = "ACK_LEVEL_NOT_REACHED"
    code = "UNAVAILABLE"
    retry_helps = True
    counts_against_objective = True


class Unauthenticated(ServiceError):
    """The request has no valid credential.

    Cause: It has no token or certificate, or one that the server does not know or that was revoked.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Use the right credential or server, then repeat it.
    Stream: The same.
    Batch: The same.
    Objective: The request has no valid credential.
    """

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The credential is valid but does not allow this call.

    Cause: It lacks the scope of the rpc: `step`, `read-state` or `admin`.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Use the right credential or server, then repeat it.
    Stream: The same.
    Batch: The same.
    Objective: The credential does not allow the call.
    """

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class Overloaded(ServiceError):
    """A limit is reached: on waiting work, on memory, or on replies that the client has not acknowledged.

    Cause: The load is higher than the servers can take, or a caller reads too slowly or sends too far
        ahead.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Repeat it later.
    Stream: Call `settle()` later.
    Batch: Repeat it later.
    Retry: Helps after the delay in `retry_after_s`, which the client library observes.
    Objective: Capacity is up to the service; a client that observes the delay causes few.
    """

    reason = "OVERLOADED"
    code = "RESOURCE_EXHAUSTED"
    retry_helps = True
    counts_against_objective = True


class ReplyTooLarge(ServiceError):
    """The reply is too large to be kept for a retry: send fewer tokens or request fewer outputs.

    Cause: The requested outputs, times the tokens in the chunk, exceed the size of a reply.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Change the chunk; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Change the row or the message.
    Objective: The request asks for more than a reply can hold.
    """

    reason = "REPLY_TOO_LARGE"
    code = "RESOURCE_EXHAUSTED"


class StoreFull(ServiceError):
    """The store has no memory left; sessions that are stored already are intact.

    Cause: There are more sessions than its `maxmemory` can hold, or others keep keys in the same store.
    Tokens: Not applied, unless an earlier attempt is in `pending`.
    Step: Repeat it later.
    Stream: Call `settle()` later.
    Batch: Repeat it later.
    Retry: Helps once the store has room again; the client library does not wait for that.
    Objective: Capacity is up to the service.
    """

    reason = "STORE_FULL"
    code = "RESOURCE_EXHAUSTED"
    counts_against_objective = True


class StoreUnavailable(ServiceError):
    """The store does not answer; a write in flight may or may not have happened.

    Cause: The store is stopped, slow or failing over, or refuses a command; the message quotes it.
    Tokens: Pending: applied or not.
    Step: Repeat it, or call `settle()`.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it; without positions, check the position of each session first.
    Objective: The store is part of the service.
    """

    reason = "STORE_UNAVAILABLE"
    code = "UNAVAILABLE"
    retry_helps = True
    counts_against_objective = True


class Draining(ServiceError):
    """This server is shutting down, or asks for a new connection; another server takes the same request.

    Cause: A rollout, a shutdown, or a connection older than `--max-connection-age-s`.
    Tokens: Pending: applied or not.
    Step: Repeat it, or call `settle()`.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it; without positions, check the position of each session first.
    Objective: Another replica takes the same chunk at once.
    """

    reason = "DRAINING"
    code = "UNAVAILABLE"
    retry_helps = True

    @property
    def is_goodbye(self) -> bool:
        """Whether it ends a stream whose chunks are all answered: the client goes on elsewhere at once."""
        return "requests_read" in self.metadata


class DeadlinePassed(ServiceError):
    """The time limit ran out. If the server says so, the chunk did not run and nothing was changed.

    Cause: The servers are slower than the limit, or the connection is dead.
    Tokens: Pending: applied or not.
    Step: Repeat it, or call `settle()`.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it; without positions, check the position of each session first.
    Objective: Nothing arrived in time, whoever set the limit.
    """

    reason = "DEADLINE_PASSED"
    code = "DEADLINE_EXCEEDED"
    retry_helps = True
    counts_against_objective = True

    @property
    def is_silence(self) -> bool:
        """Whether the server was silent for that time; otherwise the server itself reported the error."""
        return "grpc_code" in self.metadata


class ModelFailed(ServiceError):
    """The model raised, took too long, or broke its contract; nothing was changed.

    Cause: The model, or these tokens; the message and the server's log say what happened.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Change the chunk; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Change the row or the message.
    Objective: The service accepted the model.
    """

    reason = "MODEL_FAILED"
    code = "INTERNAL"
    counts_against_objective = True


class InternalFailure(ServiceError):
    """The server has a bug; its log has the trace.

    Cause: A bug.
    Tokens: Pending: the server does not know.
    Step: Repeat it, or call `settle()`, and report the bug.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it.
    Retry: Shows whether the chunk was applied; the client library does not retry by itself.
    Objective: It is a bug.
    """

    reason = "INTERNAL"
    code = "INTERNAL"
    counts_against_objective = True
