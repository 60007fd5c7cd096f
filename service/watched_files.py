"""Files that are replaced while the server runs, as an operator does or Kubernetes with a symbolic link."""

from collections.abc import Sequence
from pathlib import Path


class WatchedFiles:
    """Notices that files hold something else than before.

    Their contents are compared, not their times: the files are small, and a look at them is right whatever
    replaced them.

    Args:
        paths: Read whole, each time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen: tuple[bytes | str, ...] = ()

    def read_changed(self) -> list[bytes] | None:
        """Returns all contents if any of them changed since the last call; else None.

        Raises:
            OSError: A file cannot be read. Said once: the same trouble again is no change.
        """
        seen: list[bytes | str] = []
        trouble = None
        for path in self._paths:
            try:
                seen.append(path.read_bytes())
            except OSError as error:
                trouble = error
                seen.append(str(error))
        if tuple(seen) == self._seen:
            return None
        self._seen = tuple(seen)
        if trouble is not None:
            raise trouble
        return [content for content in seen if isinstance(content, bytes)]

    def forget(self) -> None:
        """Has the next look take the contents for changed, since they could not be used for now."""
        self._seen = ()
