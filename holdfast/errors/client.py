"""What the client says by itself: nobody answered, or nothing was sent.

The parts of a docstring are those of `holdfast.errors.session`.
"""

from holdfast.errors.base import HoldfastError


class ServerUnavailable(HoldfastError):
    """No server answers at the address, or the connection broke.

    Cause: The server is stopped or out of reach, the address is wrong, or TLS does not fit.
    Tokens: Pending: applied or not.
    Step: Repeat it, or `settle()`.
    Stream: `settle()`, then go on.
    Batch: Repeat it; without positions see where the sessions stand.
    """

    reason = "SERVER_UNAVAILABLE"
    code = "UNAVAILABLE"
    retry_helps = True

    @property
    def hides_status(self) -> bool:
        """Whether a stream ended while something was written to it: grpc.aio then drops what was said."""
        return self.metadata.get("grpc_code") == "INTERNAL"


class MessageTooLarge(HoldfastError):
    """The request is larger than the server takes.

    Cause: `--max-message-bytes` of the server, or a bound of a proxy on the way.
    Tokens: Not applied; in a stream that one and all after it.
    Step: Send a smaller chunk; the session goes on.
    Stream: Take up again at `session.position`.
    Batch: Send fewer rows in one message.
    """

    reason = "MESSAGE_TOO_LARGE"
    code = "RESOURCE_EXHAUSTED"


class ChunkPending(HoldfastError):
    """Chunks taken before have no reply yet, so nothing new is taken: `settle()`, or repeat the first one.

    Raised by the client; nothing was sent.

    Cause: An earlier call failed, and what became of its chunks is not known yet.
    Tokens: The new ones were not taken, nothing was sent.
    Step: `settle()`, then the step.
    Stream: `settle()`, then the stream.
    """

    reason = "CHUNK_PENDING"
    code = "FAILED_PRECONDITION"


class SessionBusy(HoldfastError):
    """Another call, or a stream that is not read to its end, held the session for the whole time limit.

    Raised by the client; nothing was sent.

    Cause: Two calls of one session at the same time, or a stream that was left without closing it.
    Tokens: Nothing was sent.
    Step: Read the stream that holds the session to its end, or close it.
    Stream: The same.
    """

    reason = "SESSION_BUSY"
    code = "FAILED_PRECONDITION"


class ClientClosed(HoldfastError):
    """The client, or the session object, was closed before or during the call.

    Raised by the client. What `pending` names may have been applied; a new client that opens the session
    finds by its position whether it was, and may repeat it with that chunk's position.

    Cause: `close()` of the client or of the session, or the end of a `with` block of either.
    Tokens: Pending ones may have been applied.
    Step: Open it with `take_over=True`, by a new client if this one was closed: its position tells.
    Stream: The same.
    Batch: A new client, and repeat.
    """

    reason = "CLIENT_CLOSED"
    code = "CANCELLED"


class ClientForked(HoldfastError):
    """The client cannot be used here: it, or gRPC itself, was in use when the process forked.

    Cause: A process that forks after it has used a client, as `multiprocessing` does by "fork".
    Tokens: Nothing was sent; what the parent had pending is the parent's.
    Step: Make a client in the child.
    Stream: The same.
    Batch: The same.
    """

    reason = "CLIENT_FORKED"


class WrongEventLoop(HoldfastError, RuntimeError):
    """The client belongs to another event loop or thread than the one that called it.

    Cause: An `AsyncClient` on another event loop than its first, or on none; or a `Client` called in the
        iterator that its stream reads from.
    Tokens: Nothing was sent.
    Step: Call from where the client belongs.
    Stream: The same.
    Batch: The same.
    """

    reason = "WRONG_EVENT_LOOP"
