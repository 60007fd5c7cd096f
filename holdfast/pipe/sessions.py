"""What becomes of one event: applied, applied before, or refused. The rule that makes a pipe exactly once.

A session keeps the place of the last event that was applied to it, its *cursor*, by the same commit. The
next event of a session is applied only after the record of the one before is in the sink. So for an event e
of a session with the cursor c, whatever was killed when:

    e < c    it was applied, and its record is in the sink
    e = c    it was applied, and its record may be missing: the reply is asked for again, and written
             unless it is there
    e > c    it was not applied

What a second pipe does at the same time changes nothing of it, as long as both take the events of a session
in their order, without a gap: a step names its position and its history, so the slower one gets the replies
of the other, or a conflict, and then looks at the cursor.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from holdfast.client.aio import AsyncClient
from holdfast.client.reply import StepReply
from holdfast.client.session import AsyncSession
from holdfast.errors import (
    HistoryConflict,
    HoldfastError,
    InvalidRequest,
    ModelFailed,
    PositionConflict,
    RecordCorrupt,
    ReplyTooLarge,
    SessionDeleted,
    SessionExpired,
    SessionQuarantined,
    StateNotFinite,
)
from holdfast.pipe.events import Event
from holdfast.pipe.failures import Refused, StepsLost
from holdfast.pipe.places import Place, cursor_of, entry_in, place_in
from holdfast.pipe.records import Asked
from holdfast.pipe.sinks import Sink

Found = TypeVar("Found")

OF_THE_EVENT = (
    InvalidRequest, StateNotFinite, ModelFailed, ReplyTooLarge, SessionQuarantined, RecordCorrupt,
)  # fmt: skip
"""Refusals of one event that leave its session as it was, and concern no other session."""

MOVED = (PositionConflict, HistoryConflict)
"""Refusals because the session stands elsewhere: another writer was quicker, mostly another pipe."""

ENDED = (SessionExpired, SessionDeleted)
"""The session has ended; it begins anew."""

MOST_LOOKS = 8
"""So often an event is tried on a session that is moved at the same time."""

_PAUSE_S = 1.0


class Line:
    """The events of one session that were read, in order, and how it stands.

    Attributes:
        session_id: Its id.
        events: Not begun.
        is_served: It has events, or one is under way.
        session: None until it is opened.
        applied: Place of the last event that was applied.
        is_owed: The record of that one may be missing.
        written: Place of the last record, as the sink knew when the session was opened; else None.
        is_checked: `written` was compared with what the source gives.
    """

    __slots__ = (
        "applied", "events", "is_checked", "is_owed", "is_served", "session", "session_id", "written",
    )  # fmt: skip

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.events: deque[Event] = deque()
        self.is_served = False
        self.session: AsyncSession | None = None
        self.applied: Place | None = None
        self.is_owed = False
        self.written: Place | None = None
        self.is_checked = False


class Answer(NamedTuple):
    """What an event came to.

    Attributes:
        reply: To be written; None if its record is written.
        is_new: It was applied now.
    """

    reply: StepReply | None
    is_new: bool


class Sessions:
    """Applies events to sessions.

    Args:
        client: Of the server.
        model: Of all sessions.
        version: Of the model; 0 is the newest, or any to resume.
        source_id: Names the source in cursors.
        asked: Of each reply.
        sink: Knows what was written.
        is_leaving: Whether a server that is away is waited for no more.
        say: Prints a line for people.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: str,
        version: int,
        source_id: str,
        asked: Asked,
        sink: Sink,
        is_leaving: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._model = model
        self._version = version
        self._source_id = source_id
        self._asked = asked.options
        self._sink = sink
        self._is_leaving = is_leaving
        self._say = say

    async def apply(self, line: Line, event: Event) -> Answer:
        """Does with an event what the table at the head says.

        Raises:
            Refused: It cannot be applied; its session is as it was.
            StepsLost: See there.
            HoldfastError: Anything else.
        """
        try:
            return await self._apply(line, event)
        except OF_THE_EVENT as error:
            if line.session is not None and line.session.pending:
                line.session = None  # its cursor will tell whether the event was applied nevertheless
            raise Refused(f"session {line.session_id!r}: {said(error)}") from error

    async def _apply(self, line: Line, event: Event) -> Answer:
        place = event.raw.place
        looks = 0
        while True:
            session = line.session or await self._open(line)
            if line.applied is not None and place <= line.applied:
                if place < line.applied or not line.is_owed:
                    return Answer(None, is_new=False)
                line.is_owed = False
                return Answer(await self._ask_again(session, event), is_new=False)
            if not line.is_checked:
                self._check_gap(line, session, event)
            try:
                reply = await self._step(session, event)
            except MOVED + ENDED as error:
                looks += 1
                if looks == MOST_LOOKS:
                    raise
                await self._reopen(line, session, place, error)
            else:
                line.applied = place
                return Answer(reply, is_new=True)

    async def _step(self, session: AsyncSession, event: Event) -> StepReply:
        position = session.position  # stays, so that every attempt is the same chunk
        cursor = cursor_of(self._source_id, event.raw.entry)
        return await self._insist(
            lambda: session.step(event.tokens, position=position, cursor=cursor, **self._asked)
        )

    async def _ask_again(self, session: AsyncSession, event: Event) -> StepReply | None:
        """Returns the reply that the session's last event had; None if another pipe has written it."""
        position = max(0, session.position - len(event.tokens))
        try:
            return await self._insist(lambda: session.step(event.tokens, position=position, **self._asked))
        except MOVED as error:
            written = await self._sink.last(session.session_id)
            if written is not None and written >= event.raw.place:
                return None  # else it would not have gone on to the next event
            raise Refused(
                f"session {session.session_id!r}: it was applied, its record is missing, and its reply is "
                f"kept no more: {said(error)}"
            ) from error

    # -- opening ----------------------------------------------------------------------------------

    async def _open(self, line: Line) -> AsyncSession:
        """Opens a session, or resumes it, and finds out up to where it has applied the source."""
        session = await self._insist(
            lambda: self._client.open_session(line.session_id, model=self._model, version=self._version)
        )
        try:
            line.applied = place_in(session.cursor, self._source_id)
        except ValueError as error:
            raise Refused(f"session {line.session_id!r}: {error}") from error
        written = line.written = await self._sink.last(line.session_id)
        line.is_owed = line.applied is not None and (written is None or written < line.applied)
        line.is_checked = written is None
        line.session = session
        return session

    def _check_gap(self, line: Line, session: AsyncSession, event: Event) -> None:
        """Compares the first event to be applied with the session's cursor and the record written last.

        Raises:
            StepsLost: The session has lost events whose records are written, and the source does not
                repeat them.
        """
        line.is_checked = True
        written, where = line.written, f"session {line.session_id!r}"
        assert written is not None, "bug: nothing to compare with"
        if line.is_owed:
            line.is_owed = False
            self._say(
                f"{where}: entry {entry_in(session.cursor)} was applied and its record is missing; the "
                f"source goes on at {event.raw.entry} without it"
            )
        elif event.raw.place <= written:
            return  # what was lost is applied again
        elif not session.resumed:
            self._say(f"{where} has expired, was deleted or is lost: it begins anew at {event.raw.entry}")
        elif line.applied is not None and line.applied < written:
            raise StepsLost(
                f"{where} stands at entry {entry_in(session.cursor)}, records of later ones are written, "
                f"and the source goes on at {event.raw.entry}: the store has lost steps, or somebody has "
                "put the session back. Feed it what is missing, or delete it to begin anew"
            )

    async def _reopen(self, line: Line, before: AsyncSession, place: Place, error: HoldfastError) -> None:
        """Looks again at a session that is not where it was, and tells of what no other pipe has done."""
        session = await self._open(line)
        stood = f"session {line.session_id!r} stood at position {before.position}"
        if isinstance(error, ENDED) and not session.resumed:
            self._say(f"{stood} and has ended ({error.reason}): it begins anew")
        elif line.applied is None or line.applied < place:
            self._say(f"{stood}, and another writer has moved it: going on from {session.position}")

    async def _insist(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Asks the server until it answers, or nobody waits any more."""
        has_waited = False
        while True:
            try:
                return await ask()
            except HoldfastError as error:
                if not error.retryable or self._is_leaving():
                    raise
                if not has_waited:
                    self._say(f"waiting for the server: {said(error)}")
                has_waited = True
                await asyncio.sleep(_PAUSE_S)


def said(error: Exception) -> str:
    """Returns an error as a line for people."""
    reason = error.reason if isinstance(error, HoldfastError) else ""
    return f"{reason}: {error}" if reason else str(error)
