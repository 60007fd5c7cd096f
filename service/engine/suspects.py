"""Who is to blame when a model fails: a session, whoever makes such sessions, or the model. Pure.

A session that failed by itself is a *suspect*: it runs alone until it has run CLEAN_RUNS times. A suspect
that fails by itself `quarantine_after` times in a row is to be quarantined.

Where a session fails there is an *alarm* for its tenant and model. Chunks of this tenant then run beside
nobody else's, and those of its sessions with a short history, below the *bar*, not beside its other ones
either: whoever poisons with a new session each time meets only newcomers. The bar rises when a session
above it fails, and falls again while none fails. So what can still poison a batch has paid for a history
first, and sessions that have one are left in peace.

A model that fails for CULPRIT_AFTER different sessions, and runs for none in between, is itself the
*culprit*: until it has run no failure counts against a session. A model that has never run in this process
is not believed against a session either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CULPRIT_AFTER = 8
CLEAN_RUNS = 4

BARS = (1, 16, 256)
"""Tokens of a history that the bar asks for, at each level of an alarm."""

ALARM_S = 10.0
"""An alarm falls by a level, and ends after the first, when for so long no session has failed."""

RISE_S = 1.0
"""It rises by a level at most once in so long: those who fail together are one reason."""

MAX_SUSPECTS = 4096
"""Beyond it the one that is longest under suspicion is forgotten."""


@dataclass(slots=True)
class _Suspect:
    """Attributes: failures in a row that count, runs that are left until it is none, and how it failed."""

    failure_count: int = 0
    runs_left: int = CLEAN_RUNS
    has_stalled: bool = False


@dataclass(slots=True)
class _Alarm:
    level: int
    risen_s: float
    falls_s: float
    has_stalled: bool = False


class Suspects:
    """Remembers failures, of sessions by key, of models by fingerprint, and of tenants.

    Args:
        quarantine_after: Failures in a row that lead to quarantine; 0 is never.

    Attributes:
        sessions: What is known of those under suspicion, by key.
        alarms: By model and tenant.
        working: Models that have run since a session failed by itself.
    """

    def __init__(self, quarantine_after: int) -> None:
        self._quarantine_after = quarantine_after
        self.sessions: dict[bytes, _Suspect] = {}
        self.alarms: dict[tuple[bytes, bytes], _Alarm] = {}
        self.working: set[bytes] = set()
        self._proven: set[bytes] = set()
        self._failed_since: dict[bytes, set[bytes]] = {}

    def places(self, keys: Sequence[bytes]) -> list[int]:
        """Returns which of these sessions are suspects, by index."""
        return [place for place, key in enumerate(keys) if key in self.sessions]

    def has_stalled(self, key: bytes) -> bool:
        """Whether a session is a suspect because a run of it did not end."""
        suspect = self.sessions.get(key)
        return suspect is not None and suspect.has_stalled

    def is_alarmed(self, now_s: float) -> bool:
        """Whether there is an alarm for any tenant; those that are over end here."""
        for about, alarm in list(self.alarms.items()):
            while now_s >= alarm.falls_s and alarm.level >= 0:
                alarm.level -= 1
                alarm.falls_s += ALARM_S
            if alarm.level < 0:
                del self.alarms[about]
        return bool(self.alarms)

    def bar(self, model: bytes, tenant: bytes) -> int | None:
        """Returns the tokens that a session of a tenant needs behind it; None without an alarm."""
        alarm = self.alarms.get((model, tenant))
        return None if alarm is None else BARS[alarm.level]

    def fears_stalls(self, model: bytes, tenant: bytes) -> bool:
        """Whether a session of a tenant has stalled since its alarm began."""
        alarm = self.alarms.get((model, tenant))
        return alarm is not None and alarm.has_stalled

    def failed_alone(
        self,
        model: bytes,
        tenant: bytes,
        key: bytes,
        now_s: float,
        *,
        position: int = 0,
        has_stalled: bool = False,
    ) -> bool:
        """Notes a session that failed by itself, at this position; returns whether to quarantine it."""
        alarm = self._sound(model, tenant, position, now_s)
        alarm.has_stalled |= has_stalled
        suspect = self.sessions.setdefault(key, _Suspect())
        suspect.runs_left = CLEAN_RUNS
        suspect.has_stalled |= has_stalled
        if len(self.sessions) > MAX_SUSPECTS:
            del self.sessions[next(iter(self.sessions))]
        self.working.discard(model)
        failed = self._failed_since.setdefault(model, set())
        if len(failed) < CULPRIT_AFTER:
            failed.add(key)
        if len(failed) >= CULPRIT_AFTER or model not in self._proven:
            return False
        suspect.failure_count += 1
        return 0 < self._quarantine_after <= suspect.failure_count

    def quarantined(self, key: bytes) -> None:
        """Notes that a session is in quarantine; once it is released it runs alone first."""
        self.sessions[key] = _Suspect()

    def ran(self, model: bytes) -> None:
        """Notes that a model has run."""
        self.working.add(model)
        self._proven.add(model)
        self._failed_since.pop(model, None)

    def ran_alone(self, model: bytes, key: bytes) -> None:
        """Notes that a model has run for one session, by itself."""
        self.ran(model)
        suspect = self.sessions.get(key)
        if suspect is None:
            return
        suspect.failure_count = 0
        suspect.runs_left -= 1
        if suspect.runs_left <= 0:
            del self.sessions[key]

    def _sound(self, model: bytes, tenant: bytes, position: int, now_s: float) -> _Alarm:
        alarm = self.alarms.get((model, tenant))
        if alarm is None:
            alarm = self.alarms[model, tenant] = _Alarm(0, now_s, now_s + ALARM_S)
            return alarm
        alarm.falls_s = now_s + ALARM_S
        is_above = position >= BARS[alarm.level]
        if is_above and now_s - alarm.risen_s >= RISE_S and alarm.level + 1 < len(BARS):
            alarm.level += 1
            alarm.risen_s = now_s
        return alarm
