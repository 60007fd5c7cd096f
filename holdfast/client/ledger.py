"""The ledger of a session: which tokens were applied, and which were taken and have no reply. Pure.

Every token that a caller hands over is entered once and leaves once: with its reply, or with an error that
says it was not applied. In between it is *pending*, and nothing new is entered, so neither a loop that
repeats nor one that goes on can double or lose a token. What a step is:

    pending   position given             it is
    no        none, or where it stands   new
    no        behind                     asked again: the server may still have the reply
    no        ahead                      PositionGap
    yes       the first one's, same      a retry of that chunk
    yes       anything else              ChunkPending

An entry whose reply has come stays until the caller is given that reply, and `position` moves only then. A
reply that nobody took (an interrupt, a settlement that broke down half-way) is thus given again, not lost.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from holdfast.client.replay_buffer import Applied, ReplayBuffer
from holdfast.client.reply import StepReply
from holdfast.client.tokens import to_message
from holdfast.errors import ChunkPending, HistoryConflict, HoldfastError, PositionConflict, PositionGap
from holdfast.history_digest import digest_after
from holdfast.pending import PendingChunk, Tokens, are_same, describe
from holdfast.v1 import holdfast_pb2 as pb


class Asked(NamedTuple):
    """What a chunk asks of its reply.

    Attributes:
        outputs: What it should hold, an OutputSelection, serialised; None is the server's choice.
        ack_level: How durable the commit must be.
        state: The state is among the outputs.
    """

    outputs: bytes | None
    ack_level: pb.AckLevel
    state: bool = False

    @property
    def selection(self) -> pb.OutputSelection | None:
        """The outputs as a message."""
        return None if self.outputs is None else pb.OutputSelection.FromString(self.outputs)


class Kind(NamedTuple):
    """What the rows of a batch have in common.

    Attributes:
        model: Its name, as is its version.
        asked: Of each reply.
        tokens: `text`, `ids` or `features`.
        token_count: Of a row.
        width: Of features.
        size_bytes: Of the tokens of a row, as they are kept here.
    """

    model: str
    version: int
    asked: Asked
    tokens: str
    token_count: int
    width: int = 0
    size_bytes: int = 0

    @property
    def pace(self) -> tuple[str, int, int]:
        """What makes replies quick or slow: model, version, level."""
        return self.model, self.version, self.asked.ack_level


@functools.lru_cache(256)
def _kind(named: tuple[str, int], asked: Asked, shape: int | tuple[int, ...]) -> Kind:
    """Returns the kind of such tokens; the same object for all sessions, which is quick to compare."""
    if isinstance(shape, int):
        return Kind(*named, asked, "text", shape, 0, shape)
    if len(shape) == 1:
        return Kind(*named, asked, "ids", shape[0], 0, 8 * shape[0])
    return Kind(*named, asked, "features", shape[0], shape[1], 4 * math.prod(shape))


class Entry:
    """A chunk that was taken from the caller.

    Attributes:
        position: Tokens of the session before it.
        end: Tokens after it.
        history_digest: Of those before it; 0 is not known.
        end_digest: The same after it.
        tokens: Its tokens.
        asked: What it asks of its reply.
        cursor: Stored with it; b"" leaves the stored one.
        is_applied: It was, and its reply has to be asked for once more.
        is_unsure: A sending of it ended in a way that does not say whether it was applied.
        is_placed: Its caller said at which position it goes.
        reply: Its reply, once that has come.
    """

    __slots__ = (
        "asked", "cursor", "end", "end_digest", "history_digest", "is_applied", "is_placed", "is_unsure",
        "position", "reply", "tokens",
    )  # fmt: skip

    def __init__(
        self, position: int, history_digest: int, tokens: Tokens, asked: Asked, cursor: bytes = b""
    ) -> None:
        self.position = position
        self.end = position + len(tokens)
        self.history_digest = history_digest
        self.end_digest = digest_after(history_digest, tokens)
        self.tokens = tokens
        self.asked = asked
        self.cursor = cursor
        self.is_applied = self.is_unsure = self.is_placed = False
        self.reply: StepReply | None = None

    @property
    def chunk(self) -> PendingChunk:
        """The entry as its caller sees it."""
        return PendingChunk(self.position, self.tokens)


class Ledger:
    """Keeps the account of one session. Knows no clock and no connection.

    Args:
        session: As it was opened.
        replay_tokens: Tokens kept to send again after a loss in the store.

    Attributes:
        session_id: Of the session.
        incarnation: Number of this life of the session.
        position: Tokens applied whose replies the caller was given.
        history_digest: At that position; 0 with a server that tells none.
        cursor: The last one that is known here to be stored with the session; b"" if it has none.
    """

    def __init__(self, session: pb.Session, replay_tokens: int) -> None:
        self.session_id = session.session_id
        self._model = session.model
        self._named = session.model.name, session.model.version
        self._entries: deque[Entry] = deque()
        self._answered_count = 0  # of the entries, the first so many: replies come in order
        self._kind: Kind | None = None  # of the last row, as is its shape
        self._shape: int | tuple[int, ...] = 0
        self._buffer = ReplayBuffer(replay_tokens)
        self._given: list[Entry] = []
        self.incarnation = session.incarnation
        self.position = session.position
        self.history_digest = session.history_digest
        self.cursor: bytes = session.cursor

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """What was taken and has no reply that the caller was given, in order."""
        return tuple(entry.chunk for entry in self._entries)

    @property
    def entries(self) -> Sequence[Entry]:
        """The same as entries."""
        return self._entries

    @property
    def unanswered(self) -> Iterator[Entry]:
        """Entries whose replies have not come, in order."""
        return itertools.islice(self._entries, self._answered_count, None)

    @property
    def acknowledged(self) -> int:
        """Position up to which every reply has come."""
        if self._answered_count < len(self._entries):
            return self._entries[self._answered_count].position
        return self._end[0]

    # -- taking -------------------------------------------------------------------------------

    def check_nothing_pending(self) -> None:
        """Makes sure that new tokens may be taken.

        Raises:
            ChunkPending: Others have no reply yet.
        """
        if self._entries:
            raise self._refusal("nothing new is taken until that is settled")

    def find(self, tokens: Tokens, position: int) -> Entry | None:
        """Returns the entry that these tokens repeat; None if they are new, or behind.

        Raises:
            ChunkPending: Something else is pending.
            PositionGap: They are ahead.
        """
        if self._entries:
            first = self._entries[0]
            if position != first.position:
                raise self._refusal(f"a chunk at position {position} has to wait")
            if not are_same(tokens, first.tokens):
                raise self._refusal(f"position {position} was sent with other tokens")
            return first
        if position > self.position:
            raise PositionGap(
                f"position is {position}, but the session is at {self.position}: tokens are missing",
                expected_position=self.position,
            ).tell(f"nothing was sent; continue with the token at position {self.position}")
        return None

    def take(self, pieces: Sequence[Tokens], asked: Asked) -> list[Entry]:
        """Enters chunks behind all others."""
        return [self.enter(tokens, asked) for tokens in pieces]

    def enter(self, tokens: Tokens, asked: Asked, cursor: bytes = b"") -> Entry:
        """Enters one chunk."""
        if self._entries:
            last = self._entries[-1]
            entry = Entry(last.end, last.end_digest, tokens, asked, cursor)
        else:
            entry = Entry(self.position, self.history_digest, tokens, asked, cursor)
        self._entries.append(entry)
        return entry

    def drop(self) -> tuple[PendingChunk, ...]:
        """Lets go of all entries without a reply, which were not applied; returns them."""
        dropped = tuple(entry.chunk for entry in self.unanswered)
        while len(self._entries) > self._answered_count:
            self._entries.pop()
        return dropped

    def lift(self) -> list[Entry]:
        """Takes all entries out, for `lay`; none may have a reply."""
        assert not self._answered_count, "bug: what has a reply stays where it is"
        lifted = list(self._entries)
        self._entries.clear()
        return lifted

    def lay(self, lifted: Sequence[Entry]) -> None:
        """Enters them again, behind where the session stands now."""
        for entry in lifted:
            entry.position, entry.history_digest = self._end
            entry.end = entry.position + len(entry.tokens)
            entry.end_digest = digest_after(entry.history_digest, entry.tokens)
            self._entries.append(entry)

    # -- sending ------------------------------------------------------------------------------

    def to_chunk(self, entry: Entry) -> pb.Chunk:
        """Writes an entry, or a repetition, as it is sent now."""
        chunk = self._chunk(entry.position, entry.history_digest, entry.tokens, entry.asked, entry.cursor)
        chunk.acknowledged_position = min(entry.position, self.acknowledged)
        return chunk

    def kind_of(self, entry: Entry) -> Kind:
        """Returns what the rows of its batch have in common."""
        tokens = entry.tokens
        shape = len(tokens) if isinstance(tokens, bytes) else tokens.shape
        kind = self._kind
        if kind is None or shape != self._shape or entry.asked is not kind.asked:
            kind, self._shape = _kind(self._named, entry.asked, shape), shape
            self._kind = kind
        return kind

    def repeat(self, tokens: Tokens, position: int, asked: Asked) -> Entry:
        """Returns tokens behind the session's position as they were entered then; nothing is entered now.

        Raises:
            PositionConflict: Other tokens were applied there.
        """
        history_digest = 0
        if self._buffer.reaches(position):
            if not are_same(tokens, self._buffer.tokens_at(position, len(tokens))):
                raise PositionConflict(
                    f"other tokens were applied at position {position}",
                    expected_position=self.position,
                ).tell(f"nothing was sent; the session is at position {self.position}")
            history_digest = self._buffer.digest_at(position)
        return Entry(position, history_digest, tokens, asked)

    def to_applied(self, applied: Applied) -> pb.Chunk:
        """Writes tokens that the store has lost. Their replies were had, so none is asked for.

        The level is `memory`: the chunk that found out is sent once more, and its acknowledgement covers
        everything before it.
        """
        asked = Asked(b"", pb.ACK_LEVEL_MEMORY)
        return self._chunk(applied.position, applied.history_digest, applied.tokens, asked, applied.cursor)

    def reaches(self, position: int) -> bool:
        """Whether all that was applied from a position on can be sent again."""
        return self.acknowledged == position or self._buffer.reaches(position)

    def applied_since(self, position: int, size: int) -> list[Applied]:
        """Returns what was applied from a position on, in pieces of at most `size` tokens.

        Raises:
            LookupError: That is no longer kept.
        """
        return [] if self.acknowledged == position else self._buffer.since(position, size)

    # -- replies ------------------------------------------------------------------------------

    def answer(self, entry: Entry, reply: StepReply) -> None:
        """Enters the reply to the first entry that had none.

        Raises:
            HistoryConflict: It was applied to another history than this one.
            HoldfastError: It is the reply to another chunk.
        """
        assert entry is self._entries[self._answered_count], "bug: replies come in order"
        entry.is_unsure = True  # whatever is wrong with its reply, it may have been applied
        self.check(entry, reply)
        self._buffer.append(entry.position, entry.history_digest, entry.tokens, entry.cursor)
        if entry.cursor:
            self.cursor = entry.cursor
        entry.reply = reply
        self._answered_count += 1

    def check(self, entry: Entry, reply: StepReply) -> None:
        """Makes sure that a reply is the one to an entry, or a repetition.

        Raises:
            HistoryConflict: The history after it is another one.
            HoldfastError: Session or position are others.
        """
        if reply.position != entry.end or reply.session_id != self.session_id:
            raise HoldfastError(
                f"a reply tells of {reply.session_id!r} at position {reply.position}, expected "
                f"{self.session_id!r} at {entry.end}"
            )
        digest = reply.history_digest
        if digest != entry.end_digest and digest and entry.history_digest:
            raise HistoryConflict(
                f"the reply to position {entry.end} tells of another history: the tokens were applied, but "
                "not after those that this session object has seen applied",
            )

    def give(self, count: int = 1) -> list[StepReply]:
        """Gives the caller the replies to the first entries, and moves on past them."""
        given, replies = [], []
        for _ in range(count):
            entry = self._entries.popleft()
            assert entry.reply is not None, "bug: a reply is given that has not come"
            given.append(entry)
            replies.append(entry.reply)
        self._given = given
        self._answered_count -= count
        self.position, self.history_digest = entry.end, entry.end_digest
        return replies

    def take_back(self, replies: Sequence[StepReply]) -> None:
        """Undoes the last `give`, if these are its replies: they did not reach the caller."""
        if replies and self._given and self._given[0].reply is replies[0]:
            self.position = self._given[0].position
            self.history_digest = self._given[0].history_digest
            self._entries.extendleft(reversed(self._given))
            self._answered_count += len(self._given)
            self._given = []

    def put_back(self, session: pb.Session) -> None:
        """Stands where the session was put back to, in its new incarnation; nothing may be pending."""
        self.check_nothing_pending()
        self._buffer.cut(session.position, session.history_digest)
        self._given = []
        self._model, self._named = session.model, (session.model.name, session.model.version)
        self._kind = None
        self.incarnation = session.incarnation
        self.position, self.history_digest = session.position, session.history_digest
        self.cursor = session.cursor

    # -- small things -------------------------------------------------------------------------

    @property
    def _end(self) -> tuple[int, int]:
        """Position and digest behind all entries."""
        if not self._entries:
            return self.position, self.history_digest
        last = self._entries[-1]
        return last.end, last.end_digest

    def _refusal(self, what: str) -> ChunkPending:
        pending = self.pending
        return ChunkPending(
            f"{describe(pending)} have no reply yet: {what}",
        ).tell(
            "nothing was sent; call settle(), which returns the missing replies, or repeat the first chunk "
            f"with position={pending[0].position}",
            pending=pending,
        )

    def _chunk(
        self, position: int, history_digest: int, tokens: Tokens, asked: Asked, cursor: bytes
    ) -> pb.Chunk:
        return pb.Chunk(
            session_id=self.session_id,
            model=self._model,
            tokens=to_message(tokens),
            position=position,
            incarnation=self.incarnation,
            outputs=asked.selection,
            ack_level=asked.ack_level,
            history_digest=history_digest,
            cursor=cursor,
        )
