"""What becomes of a session's chunks when a call fails for good, and how the error says so. Pure.

A refusal of the first chunk without a reply settles those sent after it: they do not continue a history
without it, so none of them was applied. That is so unless an earlier attempt of the first one had ended
without a word, and the refusal does not come from the stored session: then nobody here knows.
"""

import contextlib
from collections.abc import Iterator, Sequence

from holdfast.client.ledger import Ledger
from holdfast.errors import (
    ClientClosed,
    HoldfastError,
    InternalFailure,
    ModelFailed,
    Overloaded,
    PositionGap,
    ReplyTooLarge,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionQuarantined,
    StateNotFinite,
    StoreFull,
    StoreRegressed,
)
from holdfast.pending import PendingChunk, describe

NOT_NOW = (Overloaded, StoreFull)
"""Errors worth another attempt after which it is known that this one changed nothing."""

NOT_THERE = (
    PositionGap, StoreRegressed, SessionLost, SessionExpired, SessionNotFound, SessionQuarantined,
    StateNotFinite, ModelFailed, ReplyTooLarge,
)  # fmt: skip
"""Refusals that come from the stored session: no earlier attempt has applied what they refuse."""

UNKNOWING = (InternalFailure, ClientClosed)
"""Errors that are final and do not know what became of the chunk; nor do those of an unknown reason."""


def leaves_unsure(error: HoldfastError) -> bool:
    """Whether the attempt that ended so may have been applied."""
    return _is_unknowing(error) or (error.retryable and not isinstance(error, NOT_NOW))


def tell_fate(error: HoldfastError, ledger: Ledger) -> None:
    """Settles what an error settles, and has it say what became of the session's chunks."""
    first = next(ledger.unanswered, None)
    if first is None:
        return
    if error.retryable or _is_unknowing(error):
        _tell_pending(error, ledger)
    elif first.is_unsure and not isinstance(error, NOT_THERE):
        _tell_lost_sight(error, ledger)
    else:
        _tell_not_applied(error, ledger)


def tell_rows(error: HoldfastError, *, has_positions: bool) -> None:
    """Has the error of a whole batch say what became of its rows, where that is not known."""
    if not leaves_unsure(error):
        return
    if has_positions:
        error.tell("rows may have been applied: send the same rows at the same positions again")
    else:
        error.tell(
            "rows may have been applied, and because they were sent without positions, sending them again "
            "may apply them twice: read the position of each session by open_batch() or get_session(), and "
            "continue from there with positions"
        )


def tell_nothing_applied(error: HoldfastError, ledger: Ledger) -> None:
    """Lets go of the one chunk of a step, of which no attempt changed anything."""
    _tell_not_applied(error, ledger)


def tell_pending(error: HoldfastError, ledger: Ledger) -> None:
    """Has the error of a call that was refused before it began say what is pending nevertheless."""
    pending = ledger.pending
    if not pending or error.pending:
        return
    if isinstance(error, ClientClosed):
        error.tell(
            f"nothing was sent by this call; {describe(pending)} may have been applied: "
            f"{_elsewhere(pending)}",
            pending=pending,
        )
    else:
        error.pending = pending


@contextlib.contextmanager
def telling_pending(ledger: Ledger) -> Iterator[None]:
    """Does so with the errors of a block."""
    try:
        yield
    except HoldfastError as error:
        tell_pending(error, ledger)
        raise


def _is_unknowing(error: HoldfastError) -> bool:
    return isinstance(error, UNKNOWING) or type(error) is HoldfastError


def _tell_pending(error: HoldfastError, ledger: Ledger) -> None:
    pending = ledger.pending
    position = pending[0].position
    what = f"{describe(pending)} may have been applied"
    if isinstance(error, ClientClosed):
        error.tell(f"{what}: {_elsewhere(pending)}", pending=pending)
    else:
        error.tell(
            f"{what}: call settle(), which returns the missing replies, or repeat the first chunk with "
            f"position={position}",
            pending=pending,
        )


def _elsewhere(pending: Sequence[PendingChunk]) -> str:
    return (
        "open the session with another client and take_over=True, which fences whatever this one sent; its "
        f"position tells, or repeat the first chunk there with position={pending[0].position}"
    )


def _tell_lost_sight(error: HoldfastError, ledger: Ledger) -> None:
    pending = ledger.pending
    error.tell(
        f"{describe(pending)} may or may not have been applied before this refusal: open the session again "
        "by client.open_session(..., take_over=True), which fences whatever was sent before, and compare "
        "its position",
        pending=pending,
    )


def _tell_not_applied(error: HoldfastError, ledger: Ledger) -> None:
    not_applied = ledger.drop()
    fate = f"{describe(not_applied)}: not applied"
    if ledger.pending:
        fate += "; settle() returns the replies to what came before"
    error.tell(fate, pending=ledger.pending, not_applied=not_applied)
