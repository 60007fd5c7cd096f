"""What a session does when something fails: waits, asks another server, sends again what the store lost.

What was answered is kept as far as `replay_tokens` reach. A store that has lost some of it, or the whole
session, gets it again, and the outputs are those of a store that lost nothing. Only a loss is made good: a
session that was taken over, opened again or deleted by others stays theirs, and every chunk that is sent
again names the history it belongs to, so that it never goes into another one.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from holdfast.client.calls import Calls
from holdfast.client.ledger import Ledger
from holdfast.client.opening import draw_nonce
from holdfast.client.options import argument_of
from holdfast.client.replay_buffer import Applied
from holdfast.errors import (
    Draining,
    HoldfastError,
    PositionConflict,
    PositionGap,
    ServerUnavailable,
    SessionDeleted,
    SessionLost,
    StoreRegressed,
)
from holdfast.pending import Tokens, are_same
from holdfast.v1 import holdfast_pb2 as pb

HEAL_CHUNK_TOKENS = 64

DELETED_KNOWN_S = 3600.0
"""So long a server knows of a deleted session that it was deleted; later it looks as if it were lost."""


class LeftGeneration(Protocol):
    """A generation that was left while the server may have committed more of it."""

    @property
    def is_last(self) -> bool:
        """Whether the session stands here where the generation ended, as far as that is known."""

    async def take_rest(self, attempt: int, deadline_s: float) -> list[Tokens]:
        """Enters what the server has committed of it since into the account of the session."""


class Recovery:
    """Brings a session back to where its next attempt can succeed.

    Args:
        calls: Of the client.
        ledger: Of the session.
        stub: Of the connection that it was opened on.
        opened: The reply to its opening.
        initial_state: With which it was opened.

    Attributes:
        stub: Of the connection to use; another one after a failure.
        left: The last generation that was left early; None if none was.
    """

    def __init__(
        self,
        calls: Calls,
        ledger: Ledger,
        stub: Any,
        opened: pb.OpenSessionResponse,
        initial_state: Sequence[pb.NamedTensor],
    ) -> None:
        self._calls = calls
        self._ledger = ledger
        self._opened = opened
        self._initial_state = initial_state
        self._lives_s: float = opened.session.expires_in_s or DELETED_KNOWN_S
        self._heard_s = time.monotonic()
        self._nonce = 0  # of a reopening that has had no reply yet
        self.stub = stub
        self.left: LeftGeneration | None = None

    def heard(self) -> None:
        """Notes that the server has just answered for this session."""
        self._heard_s = time.monotonic()

    async def recover(
        self, error: HoldfastError, attempt: int, deadline_s: float, *, until: int | None = None
    ) -> None:
        """Returns when the unanswered chunks may be sent again; else raises.

        Args:
            error: How the attempt ended.
            attempt: How many have.
            deadline_s: Monotonic time at which it is given up.
            until: What is lost is sent again up to this position; None is all of it.

        Raises:
            HoldfastError: The error is final, or the time is up; its field is the caller's argument.
        """
        error.field = argument_of(error.field)
        if isinstance(error, StoreRegressed) and error.expected_position is not None:
            self._check_time(error, attempt, deadline_s)
            await self._resend(error.expected_position, error, deadline_s, until)
        elif isinstance(error, SessionLost | SessionDeleted) and self._can_reopen(error):
            self._check_time(error, attempt, deadline_s)
            await self._reopen(error, deadline_s, until)
        elif isinstance(error, PositionConflict) and self.left is not None and self.left.is_last:
            await self._go_behind(self.left, error, attempt, deadline_s)
        elif error.retryable:
            self.stub = self._calls.next_stub()
            if attempt > 1 or not _is_end_of_stream(error):
                await self._calls.pause(error, attempt, deadline_s)
        else:
            raise error

    async def recover_loss(self, error: PositionGap, attempt: int, deadline_s: float) -> None:
        """Returns when the tokens that the store has lost are applied again, if a gap means that.

        Raises:
            HoldfastError: They are no longer kept, or the time is up.
        """
        lost = StoreRegressed(
            error.message, expected_position=error.expected_position, metadata=error.metadata
        )
        await self.recover(lost, attempt, deadline_s)

    def _check_time(self, error: HoldfastError, attempt: int, deadline_s: float) -> None:
        """Ends the healing of a store that loses everything again at once."""
        if attempt > 1 and time.monotonic() >= deadline_s:
            raise error

    async def _resend(
        self, position: int, error: HoldfastError, deadline_s: float, until: int | None
    ) -> None:
        """Sends the tokens again that the store has lost; their replies were had before.

        Should the store lose something again meanwhile, the chunk that found out is sent once more and
        finds that out, too.

        Raises:
            HoldfastError: The given one, if the tokens are no longer kept.
        """
        try:
            lost = self._ledger.applied_since(position, HEAL_CHUNK_TOKENS)
        except LookupError:
            raise error from None
        with contextlib.suppress(PositionGap, SessionLost):
            for applied in lost if until is None else _up_to(until, lost):
                request = pb.StepRequest(chunk=self._ledger.to_applied(applied))
                await self._calls.call("Step", request, deadline_s=deadline_s)

    async def _go_behind(
        self, left: LeftGeneration, error: PositionConflict, attempt: int, deadline_s: float
    ) -> None:
        """Has the unanswered chunks go behind what a generation committed after it had been left.

        Each token of the generation is asked for by where it stands in the history, so that those of
        another writer stay a conflict.

        Raises:
            HoldfastError: The given one, if something else is in the way, or one of the chunks may be what
                is; or the time is up.
        """
        for entry in self._ledger.entries:
            if entry.is_placed or entry.is_applied or entry.reply is not None:
                raise error
        entries = self._ledger.lift()
        rest: list[Tokens] = []
        try:
            rest = await left.take_rest(attempt, deadline_s)
        except HoldfastError as failure:
            if not failure.retryable:
                raise error from failure
            self.stub = self._calls.next_stub()
            await self._calls.pause(failure, attempt, deadline_s)
        else:
            if not rest or (entries and entries[0].is_unsure and are_same(rest[0], entries[0].tokens)):
                raise error
            for entry in entries:
                entry.is_unsure = False  # something else stands where it would have gone
        finally:
            self._ledger.lay(entries)

    def _can_reopen(self, error: SessionLost | SessionDeleted) -> bool:
        """Whether a session that is gone was lost by the store, and can be made again.

        One that is in another incarnation may be this session, made again by a call whose reply was lost.
        Not one that was resumed, whose first state is not known, or whose first tokens are no longer kept;
        and not one that was silent for so long that it may have expired, or been deleted by others so long
        ago that this is forgotten.
        """
        if isinstance(error, SessionDeleted) and not self._nonce:
            return False
        silent_s = time.monotonic() - self._heard_s
        if self._opened.resumed or silent_s >= min(self._lives_s, DELETED_KNOWN_S):
            return False
        return self._ledger.reaches(0)

    async def _reopen(
        self, error: SessionLost | SessionDeleted, deadline_s: float, until: int | None
    ) -> None:
        """Opens the session anew, from the state it was opened with, and sends all its tokens again.

        The nonce stays until a reply has come, so that a later call finds what this one may have made.
        """
        self._nonce = self._nonce or draw_nonce()
        session = self._opened.session
        request = pb.OpenSessionRequest(
            session_id=session.session_id,
            model=session.model,
            initial_state=self._initial_state,
            nonce=self._nonce,
        )
        opened = await self._calls.call("OpenSession", request, deadline_s=deadline_s)
        self._nonce = 0
        if opened.resumed:  # others have opened it meanwhile
            raise error
        self._ledger.incarnation = opened.session.incarnation
        await self._resend(0, error, deadline_s, until)


def _up_to(until: int, lost: Iterable[Applied]) -> Iterator[Applied]:
    """Yields what was applied before a position."""
    for applied in lost:
        tokens = applied.tokens[: max(0, until - applied.position)]
        if len(tokens):
            yield applied._replace(tokens=tokens)


def _is_end_of_stream(error: HoldfastError) -> bool:
    """Whether a stream has ended in a way that lets it be begun anew at once, if not twice in a row."""
    if isinstance(error, Draining):
        return error.is_goodbye
    return isinstance(error, ServerUnavailable) and error.hides_status
