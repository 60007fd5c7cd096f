"""How much of the event loop's time may go into runs that fail. Pure: times are given.

A run that fails takes time that others wait for, and whoever makes it fail can have any number of them. So
such runs may take a moment at once, and beyond it a share of the time: what does not fit waits.
"""

AT_ONCE_S = 0.05
SHARE = 0.25

_MOST_S = 0.01
"""A run counts for no more than this: one that takes longer is in a thread."""


class Allowance:
    """What is left of it."""

    def __init__(self) -> None:
        self._free_s = 0.0  # when all that was taken will have been made up for

    def take(self, run_s: float, now_s: float) -> None:
        """Counts a run that failed."""
        self._free_s = max(self._free_s, now_s - AT_ONCE_S / SHARE) + min(run_s, _MOST_S) / SHARE

    def pause_s(self, now_s: float) -> float:
        """Returns how long the next run waits; 0 while there is something left."""
        return max(0.0, self._free_s - now_s)
