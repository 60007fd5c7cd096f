"""Files that are replaced while the server runs, as an operator does or Kubernetes with a symbolic link."""

from collections.abc import Sequence
from pathlib import Path

from service.common.operator_files import FileContent, read_file


class WatchedFiles:
    """Notices that files hold something else, or have other permissions, than when they were last judged.

    Contents are compared, not times: the files are small, and a look at them is right whatever replaced
    them. Permissions are compared too, since a file may be refused for them. What could not be judged, say
    for lack of memory, is returned again until it can.

    Args:
        paths: Read whole, each time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._judged: list[FileContent] | None = None
        self._read: list[FileContent] | None = None
        self._trouble = ""

    def read_changed(self) -> list[FileContent] | None:
        """Returns what all files hold, if it is not what was judged last; else None.

        Raises:
            OSError: A file cannot be read. Said once: None while the trouble stays the same.
        """
        try:
            self._read = [read_file(path) for path in self._paths]
        except OSError as error:
            if str(error) == self._trouble:
                return None
            self._trouble = str(error)
            raise
        self._trouble = ""
        return None if self._read == self._judged else self._read

    def judge(self) -> None:
        """What was read last is in use, or can never be as it stands: it is not returned again."""
        self._judged = self._read
