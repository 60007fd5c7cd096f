"""The small files that an operator names: certificates, keys, credentials, passwords.

One that is no regular file is refused: a pipe would hold up whoever opens it until somebody writes, and
gives its content once, where these files are read again.
"""

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

MAX_BYTES = 64 << 20
"""A tokens file of this size has some 400,000 tokens."""


class FileContent(NamedTuple):
    """What a file holds, and who may do what with it.

    Attributes:
        data: All of it.
        mode: Permissions, as of the same moment.
    """

    data: bytes
    mode: int


def read_file(path: Path) -> FileContent:
    """Reads a file without waiting for anybody.

    Raises:
        OSError: It cannot be read, is no regular file, or has more than MAX_BYTES.
    """
    with open(path, "rb", opener=_open) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_BYTES} bytes", str(path))
    return FileContent(data, stat.S_IMODE(mode))


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # a terminal must not become ours
