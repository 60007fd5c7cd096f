"""Files that are replaced while the server runs, as an operator does or Kubernetes with a symbolic link."""

from collections.abc import Sequence
from pathlib import Path

from service.text_files import without_mark


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
        """Returns all contents, without byte order marks, if any changed since the last call; else None.

        Raises:
            OSError: A file cannot be read. Said once: the same trouble again is no change.
            UnicodeDecodeError: A file has the mark of UTF-16 and is not. Said once, too.
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
        return [without_mark(content) for content in seen if isinstance(content, bytes)]
