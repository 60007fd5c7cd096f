"""What the engine did, as data for those who count it. Times are seconds."""

import enum
from dataclasses import dataclass, field

from service.store.protocol import AckLevel


@dataclass(slots=True)
class BatchReport:
    """What was done since the last report; as a rule one batch, from its load to its answers.

    Attributes:
        loads: Reads of sessions that were not in memory: how many in one round trip, and its time.
        waits: Waits of chunks before they first ran; the wait of each, or of so many that came together.
        runs: Runs of chunks for the first time: how many together, and the time.
        commits: Commits: bytes of the records, and the time until the store had answered.
        answers: Chunks answered after their commit: their times from arrival, as `waits`.
        step_count: All tokens of these.
        acknowledged: Chunks answered, replays included: how durable they are, and how many.
        refused: Reasons of refusals whose caller still waited.
        replay_count: Chunks answered from the record.
        conflict_count: Commits of a record that found another one than expected.
        rerun_count: Parts of a batch that failed, run again.
        halt_count: Runs ended because they took too long.
        quarantine_count: Sessions put into quarantine.
    """

    loads: list[tuple[int, float]] = field(default_factory=list)
    waits: list[tuple[list[float], int]] = field(default_factory=list)
    runs: list[tuple[int, float]] = field(default_factory=list)
    commits: list[tuple[int, float]] = field(default_factory=list)
    answers: list[tuple[list[float], int]] = field(default_factory=list)
    step_count: int = 0
    acknowledged: list[tuple[AckLevel, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    replay_count: int = 0
    conflict_count: int = 0
    rerun_count: int = 0
    halt_count: int = 0
    quarantine_count: int = 0


class SessionEvent(enum.IntEnum):
    """What can happen to a session. Numbered from 0; see `Metrics.session_event`."""

    OPENED = 0
    RESUMED = 1
    TAKEN_OVER = 2
    DELETED = 3
    EXPIRED = 4
    LOST = 5
    REGRESSED = 6
    QUARANTINED = 7
    RELEASED = 8
    RESTORED = 9
    FORKED = 10
    IMPORTED = 11
