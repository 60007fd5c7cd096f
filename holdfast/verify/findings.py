"""What was found of a session, or of all of them.

The kinds that break the promise:

    lost        an acknowledged token is not in the state: a later position contradicts it, other tokens
                stand in its place, the last look at the session is behind it, or outputs are those of a
                run without it
    twice       a chunk was applied again: positions jumped by it, two replies say that each applied it
                though the store had not gone back, or outputs are those of a run that had it twice
    reordered   chunks were applied in another order than they were sent in
    wrong       outputs differ by more than the tolerance and none of these explains it, or a reply is that
                to another request
    unexplained tokens were applied that no recorded request sent
    unopened    tokens were accepted at the beginning of a session that no recorded request can have opened,
                or after it was deleted: only OpenSession and OpenBatch open one
    dependent   outputs differ, and the model itself gives a session something else beside others, or in
                other chunks; what was applied cannot be told from outputs then

Counts are tokens. A store that lost steps and said so (STORE_REGRESSED), and a client that sent them again,
are no loss; nor is a session that was lost as a whole and told everything again.
"""

from collections import Counter
from dataclasses import dataclass, field

FAULTS = ("lost", "twice", "reordered", "wrong", "unexplained", "unopened", "dependent")
"""Findings that break the promise."""


@dataclass
class Findings:
    """What was found, in tokens where nothing else is said.

    Attributes:
        requests: Chunks sent, every attempt.
        replies: Acknowledged chunks.
        retries: Chunks sent again.
        replays: Replies that say so.
        errors: Refusals and failures, by reason.
        lost: See the head of this file, as for the next six.
        twice: As named.
        reordered: As named.
        wrong: As named.
        unexplained: As named.
        unopened: As named.
        dependent: As named.
        digests: Replies whose history digest was held against the tokens.
        unchecked: Acknowledged tokens whose outputs could not be recomputed.
        tokens: Acknowledged tokens that were recomputed.
        largest_difference: Of any output.
        notes: What is wrong, in words.
    """

    requests: int = 0
    replies: int = 0
    retries: int = 0
    replays: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    reordered: int = 0
    wrong: int = 0
    unexplained: int = 0
    unopened: int = 0
    dependent: int = 0
    digests: int = 0
    unchecked: int = 0
    tokens: int = 0
    largest_difference: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return not any(getattr(self, fault) for fault in FAULTS)

    def add(self, other: "Findings") -> None:
        """Adds those of another session."""
        counts = ("requests", "replies", "retries", "replays", "digests", "unchecked", "tokens")
        for name in (*counts, *FAULTS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors += other.errors
        self.largest_difference = max(self.largest_difference, other.largest_difference)
