"""Which files of a folder have come to rest and were not tried yet, from one look to the next. Pure.

A file that is being copied is longer, or newer, at each look. It is tried once two looks, some time apart,
have found the same of it; then never again, until it is another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.model.files import ModelFile, Stamps

SETTLE_S = 0.4
"""So far apart are two looks that have to find the same of a file."""


@dataclass
class _Seen:
    stamp: Stamps | None
    since_s: float
    is_tried: bool = False


class Looks:
    """Remembers what the last look found."""

    def __init__(self) -> None:
        self._seen: dict[ModelFile, _Seen] = {}

    def rested(self, found: Mapping[ModelFile, Stamps | None], now_s: float) -> list[ModelFile]:
        """Takes what a look found.

        Args:
            found: All files of the folder; None for one that cannot be looked at.
            now_s: When, monotonic.

        Returns:
            Those that hold the same as at the look before, at least SETTLE_S ago, and were not tried since.
        """
        seen = {file: self._same(file, stamp) or _Seen(stamp, now_s) for file, stamp in found.items()}
        self._seen = seen
        return [file for file, one in seen.items() if not one.is_tried and now_s - one.since_s >= SETTLE_S]

    def note_tried(self, file: ModelFile) -> None:
        """Remembers that a file was tried as the last look found it."""
        self._seen[file].is_tried = True

    def forget_tried(self, files: Iterable[ModelFile]) -> None:
        """Has files tried again, whether or not they change."""
        for file in files:
            if file in self._seen:
                self._seen[file].is_tried = False

    def restless(self) -> list[ModelFile]:
        """Returns the files that were not tried yet, as of the last look."""
        return [file for file, one in self._seen.items() if not one.is_tried]

    def _same(self, file: ModelFile, stamp: Stamps | None) -> _Seen | None:
        before = self._seen.get(file)
        return before if before is not None and before.stamp == stamp else None
