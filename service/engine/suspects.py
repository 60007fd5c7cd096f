"""Who is to blame when a model fails: one session, or the model itself. Pure; time is passed in.

A session that failed by itself is a *suspect*: it runs alone until it has run once. A suspect that fails
by itself `quarantine_after` times in a row is to be quarantined.

A model that fails for `CULPRIT_AFTER` different sessions, and runs for none in between, is itself the
*culprit*: for `CULPRIT_PAUSE_S` nobody looks for the row at fault, nobody runs alone, and no failure counts
against a session. A model that has never run in this process is not believed against a session either.
"""

from collections.abc import Iterable, Sequence

CULPRIT_AFTER = 8
CULPRIT_PAUSE_S = 1.0

MAX_SUSPECTS = 4096
"""Beyond it the one that is longest under suspicion is forgotten."""


class Suspects:
    """Remembers failures, of sessions by key and of models by fingerprint.

    Args:
        quarantine_after: Failures in a row that lead to quarantine; 0 is never.
    """

    def __init__(self, quarantine_after: int) -> None:
        self._quarantine_after = quarantine_after
        self._failure_counts: dict[bytes, int] = {}
        self._proven: set[bytes] = set()
        self._failed_since: dict[bytes, set[bytes]] = {}
        self._culprit_until_s: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._failure_counts)

    def places(self, keys: Sequence[bytes]) -> list[int]:
        """Returns which of these sessions are suspects, by index."""
        counts = self._failure_counts
        return [place for place, key in enumerate(keys) if key in counts]

    def failed_alone(self, model: bytes, key: bytes, now_s: float) -> bool:
        """Notes a session that failed by itself; returns whether it is to be quarantined."""
        failed = self._failed_since.setdefault(model, set())
        failed.add(key)
        count = self._failure_counts.setdefault(key, 0)
        if len(self._failure_counts) > MAX_SUSPECTS:
            del self._failure_counts[next(iter(self._failure_counts))]
        if len(failed) >= CULPRIT_AFTER:
            self._culprit_until_s[model] = now_s + CULPRIT_PAUSE_S
            failed.clear()
            return False
        if model not in self._proven:
            return False
        self._failure_counts[key] = count + 1
        return 0 < self._quarantine_after <= count + 1

    def quarantined(self, key: bytes) -> None:
        """Notes that a session is in quarantine; once it is released it runs alone first."""
        self._failure_counts[key] = 0

    def ran(self, model: bytes, keys: Iterable[bytes]) -> None:
        """Notes that a model has run for these sessions."""
        self._proven.add(model)
        if not (self._failure_counts or self._failed_since):
            return
        self._failed_since.pop(model, None)
        self._culprit_until_s.pop(model, None)
        for key in keys:
            self._failure_counts.pop(key, None)

    def pause_s(self, model: bytes, now_s: float) -> float:
        """Returns for how long a model is still held to be the culprit; 0 if it is not."""
        if not self._culprit_until_s:
            return 0.0
        return max(0.0, self._culprit_until_s.get(model, now_s) - now_s)
