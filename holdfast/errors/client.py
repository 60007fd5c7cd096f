"""Errors that the client raises by itself: no server answered, or nothing was sent.

The parts of a docstring are those of `holdfast.errors.session`.
"""

from holdfast.errors.base import HoldfastError


class ServerUnavailable(HoldfastError):
    """No server answers at the address, or the connection broke.

    Cause: The server is stopped or unreachable, the address is wrong, or the TLS settings do not match.
    Tokens: Pending: applied or not.
    Step: Repeat it, or call `settle()`.
    Stream: Call `settle()`, then continue.
    Batch: Repeat it; without positions, check the position of each session first.
    """

    reason = "SERVER_UNAVAILABLE"
    code = "UNAVAILABLE"
    retry_helps = True

    @property
    def hides_status(self) -> bool:
        """Whether a stream ended while something was written to it: grpc.aio then drops what was said."""
        return self.metadata.get("grpc_code") == "INTERNAL"


class MessageTooLarge(HoldfastError):
    """The request is larger than the server accepts.

    Cause: `--max-message-bytes` of the server, or a limit of a proxy in between.
    Tokens: Not applied; in a stream, neither that chunk nor those after it.
    Step: Send a smaller chunk; the session continues.
    Stream: Continue with a new stream at `session.position`.
    Batch: Send fewer rows in one message.
    """

    reason = "MESSAGE_TOO_LARGE"
    code = "RESOURCE_EXHAUSTED"


class ChunkPending(HoldfastError):
    """Earlier chunks have no reply yet: call `settle()`, or repeat the first one, before you send new ones.

    Raised by the client; nothing was sent.

    Cause: An earlier call failed, and the outcome of its chunks is unknown.
    Tokens: The new ones were not taken, and nothing was sent.
    Step: Call `settle()`, then step.
    Stream: Call `settle()`, then stream.
    """

    reason = "CHUNK_PENDING"
    code = "FAILED_PRECONDITION"


class SessionBusy(HoldfastError):
    """Another call, or a stream that was not read to its end, held the session for the whole time limit.

    Raised by the client; nothing was sent.

    Cause: Two calls use one session at the same time, or a stream was abandoned without closing it.
    Tokens: Nothing was sent.
    Step: Read the stream that holds the session to its end, or close it.
    Stream: The same.
    """

    reason = "SESSION_BUSY"
    code = "FAILED_PRECONDITION"


class ClientClosed(HoldfastError):
    """The client, or the session object, was closed before or during the call.

    Raised by the client. What `pending` names may have been applied. Open the session with a new client:
    its position shows whether it was, and you may repeat the chunk at the chunk's position.

    Cause: `close()` of the client or of the session, or the end of a `with` block of either.
    Tokens: Pending ones may have been applied.
    Step: Open the session with `take_over=True`, by a new client if this one was closed: its position
        tells.
    Stream: The same.
    Batch: Use a new client, and repeat it.
    """

    reason = "CLIENT_CLOSED"
    code = "CANCELLED"


class ClientForked(HoldfastError):
    """The client cannot be used here: it, or gRPC itself, was in use when the process forked.

    Cause: The process forked after it had used a client, as `multiprocessing` does by "fork".
    Tokens: Nothing was sent; what the parent had pending is still the parent's.
    Step: Make a client in the child.
    Stream: The same.
    Batch: The same.
    """

    reason = "CLIENT_FORKED"


class WrongEventLoop(HoldfastError, RuntimeError):
    """The client belongs to another event loop or thread than the one that called it.

    Cause: An `AsyncClient` is used on another event loop than its first, or on none; or a `Client` is
        called in the iterator from which its stream reads.
    Tokens: Nothing was sent.
    Step: Call from the event loop or thread to which the client belongs.
    Stream: The same.
    Batch: The same.
    """

    reason = "WRONG_EVENT_LOOP"
