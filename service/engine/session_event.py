"""What can happen to a session, for those who count it."""

import enum


class SessionEvent(enum.IntEnum):
    """Numbered from 0; see `Metrics.session_event`."""

    OPENED = 0
    RESUMED = 1
    TAKEN_OVER = 2
    DELETED = 3
    EXPIRED = 4
    LOST = 5
    REGRESSED = 6
    QUARANTINED = 7
    RELEASED = 8
