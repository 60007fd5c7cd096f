"""What every error has."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from holdfast.pending import PendingChunk

_MAY_PASS = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class HoldfastError(Exception):
    """A call failed.

    Attributes:
        reason: UPPER_SNAKE name, stable; callers match on it.
        code: Name of the gRPC status code.
        message: What was wrong, where, and what would be right.
        field: Path of the request field at fault, or the argument of a step; "" if none is.
        expected_position: Position the store holds, where that matters; else None.
        retry_after_s: Seconds after which the same request may succeed; None if the server names no pause.
        metadata: Further facts from the server, by name.
        pending: Chunks of the session that may have been applied, or wait to be sent; until they are
            settled the session takes no others. Empty: it is known of every chunk what became of it.
        not_applied: Chunks that were taken from the caller and are known not to have been applied; the
            session has let them go, and its position is that of the first one.
        retry_helps: Of the class: whether the same request may succeed with nothing changed but the time.
    """

    reason: str = ""
    code: str = "UNKNOWN"
    retry_helps: ClassVar[bool] = False
    pending: "tuple[PendingChunk, ...]" = ()
    not_applied: "tuple[PendingChunk, ...]" = ()
    _fate = ""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        expected_position: int | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        reason: str = "",
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.expected_position = expected_position
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        if reason:  # one that this version does not know
            self.reason = reason
        if code:
            self.code = code

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later; a step only with the `position` that it had."""
        return self.code in _MAY_PASS or self.retry_after_s is not None

    def tell(
        self,
        fate: str,
        *,
        pending: "tuple[PendingChunk, ...]" = (),
        not_applied: "tuple[PendingChunk, ...]" = (),
    ) -> Self:
        """Says what became of the tokens and what to do, at the end of the message; returns itself."""
        self._fate, self.pending, self.not_applied = fate, pending, not_applied
        return self

    def without_trace(self) -> Self:
        """Returns itself without the frames that it was raised in, once nobody needs them any more.

        They hold the request, and whoever keeps the error: a cycle, which lasts until the collector comes.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self._fate}" if self._fate else message


class ServiceError(HoldfastError):
    """A refusal of the service, with a reason of the contract.

    Attributes:
        counts_against_objective: Of the class: whether the service has failed, and not its caller.
    """

    counts_against_objective: ClassVar[bool] = False
