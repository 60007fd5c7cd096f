"""What clients recorded of one session: what they sent, what they were told, and what they saw."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Outputs:
    """What a reply shows of k tokens; parts that nobody asked for are None or empty.

    Attributes:
        token_count: k.
        top_ids: (k, n), with `top_log_probs`.
        top_log_probs: (k, n).
        token_log_probs: (k,).
        tensors: Output name -> (k, ...).
        state: State name -> the state after the last token.
    """

    token_count: int
    top_ids: NDArray[Any] | None = None
    top_log_probs: NDArray[Any] | None = None
    token_log_probs: NDArray[Any] | None = None
    tensors: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)


@dataclass(slots=True)
class Reply:
    """An acknowledgement.

    Attributes:
        time_s: When it came.
        incarnation: Of the session.
        position: After the chunk.
        replayed: It says that the chunk had been applied before.
        outputs: What it shows.
        digest: History digest after the chunk; 0 is not given.
        is_foreign: It names another session or request than the one it answers.
    """

    time_s: float
    incarnation: int
    position: int
    replayed: bool
    outputs: Outputs
    digest: int = 0
    is_foreign: bool = False


@dataclass(slots=True)
class Attempt:
    """A chunk that was sent once.

    Attributes:
        time_s: When it was sent.
        tokens: (k,) or (k, width).
        position: Where it was meant to go; None is "append".
        incarnation: As asked; 0 is any.
        reply: Its acknowledgement, if there was one.
        reason: Why it failed; "" if it did not, or if its fate is unknown.
        expected_position: What the refusal said about the session.
        is_repetition: It was acknowledged before, as each call of a generation begins with the last token.
    """

    time_s: float
    tokens: NDArray[Any]
    position: int | None
    incarnation: int
    reply: Reply | None = None
    reason: str = ""
    expected_position: int | None = None
    is_repetition: bool = False


@dataclass(slots=True)
class Sight:
    """A look at a session: it was opened, resumed or read.

    Attributes:
        sent_s: When the client asked.
        incarnation: Of the session.
        position: Where it stood.
        digest: History digest there; 0 is not given.
        is_opening: It was opened here; else it existed.
        took_over: The asker gave it this incarnation, and it went on.
        was_put_back: The asker put it back to a checkpoint, in this incarnation.
        is_copy: It was made here, of another session or of a blob.
        heard_s: When the answer came; None is at once.
        asked_s: When the client first sent the request that this answers; None is `sent_s`.
        initial: State it was opened with; None is the model's own.
        state: State that was read; empty if none was.
    """

    sent_s: float
    incarnation: int
    position: int
    digest: int = 0
    is_opening: bool = False
    took_over: bool = False
    was_put_back: bool = False
    is_copy: bool = False
    heard_s: float | None = None
    asked_s: float | None = None
    initial: Arrays | None = None
    state: Arrays = field(default_factory=dict)

    @property
    def known_s(self) -> float:
        """When the asker knew it."""
        return self.sent_s if self.heard_s is None else self.heard_s


class Deletion(NamedTuple):
    """A request to delete a session.

    Attributes:
        sent_s: When the client asked.
        incarnation: Asked to delete; 0 is any.
        closed_s: When it learnt that it was deleted; None if it did not.
    """

    sent_s: float
    incarnation: int
    closed_s: float | None = None


class OpenGeneration(NamedTuple):
    """A generation that was broken off, so that it may have applied tokens that nobody was told of.

    Attributes:
        incarnation: Of the session, as asked; 0 is any.
        position: Up to which its tokens are known.
    """

    incarnation: int
    position: int


@dataclass(slots=True)
class SessionHistory:
    """All that is recorded of one session.

    Attributes:
        attempts: In the order in which they were sent.
        sights: In the order in which they were asked for.
        deletions: Requests to delete it.
        openings: When requests to open it were sent of which nobody knows whether they did.
        takeovers: The same of those to take it over.
        restores: The same of those to put it back to a checkpoint.
        generations: Those that were broken off.
    """

    attempts: list[Attempt] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    openings: list[float] = field(default_factory=list)
    takeovers: list[float] = field(default_factory=list)
    restores: list[float] = field(default_factory=list)
    generations: list[OpenGeneration] = field(default_factory=list)
