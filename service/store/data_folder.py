"""The folder of an embedded store: whose it may be, its locks, its socket, and room for another write.

Knows files and locks, not the store. What lies in it belongs to one user: whoever else could put a socket
or an append-only file there would be taken for the store.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

MAX_SOCKET_PATH_BYTES = 100
"""Unix sockets have 108 bytes for their path on Linux and 104 elsewhere."""

ROOM_BYTES = 64 << 10
"""What must be writable before a store is started: else it would start, and end with its first commit."""

LOCK_POLL_S = 0.01

_VOLUME_SUBFOLDER = "holdfast"
"""Of a folder that belongs to root, as volumes do that are mounted for a group or for everybody."""


class EmbeddedStoreError(Exception):
    """The embedded store cannot be used; the message says why and what to do."""


def prepared(data_dir: Path) -> Path:
    """Returns the folder to use, made if it is missing, with a folder `store` in it.

    A folder of root that this user may write gets a folder of this user in it, which is then used.

    Raises:
        EmbeddedStoreError: It cannot be made or written, or belongs to somebody else.
    """
    try:
        folder = data_dir.expanduser()
    except RuntimeError:
        raise EmbeddedStoreError(
            f"--data-dir {data_dir}: user {os.getuid()} has no home folder; name a folder that it may write"
        ) from None
    try:
        folder = folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == 0 != os.getuid() and _is_writable(folder):
            folder = folder / _VOLUME_SUBFOLDER
            folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise EmbeddedStoreError(
                f"--data-dir {folder}: belongs to another user; name a folder of yours"
            )
        (folder / "store").mkdir(mode=0o700, exist_ok=True)
        if not _is_writable(folder):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise unusable(folder, error) from None
    return folder


def unusable(folder: Path, error: OSError) -> EmbeddedStoreError:
    """Returns what an operator is told when something in the folder cannot be made or written."""
    reason = (error.strerror or str(error)).lower()
    remedy = "name a folder that this user may write"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room on its disk"
    return EmbeddedStoreError(f"--data-dir {folder}: cannot be made or written, {reason}; {remedy}")


def check_room(folder: Path) -> None:
    """Makes sure that the disk takes another write.

    Raises:
        OSError: It does not.
    """
    probe = folder / "store" / "room.probe"
    try:
        probe.write_bytes(bytes(ROOM_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def socket_path_of(folder: Path) -> Path:
    """Returns the socket in the folder, or in a private short one if the path would be too long.

    Raises:
        EmbeddedStoreError: There is no such short one for this user.
    """
    path = folder / "store.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    try:
        short = Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}-{name}"
        short.mkdir(mode=0o700, exist_ok=True)
        is_ours = not short.is_symlink() and short.stat().st_uid == os.getuid()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EmbeddedStoreError(
            f"--data-dir {folder}: too long for a socket in it, and none can be made for it elsewhere, "
            f"{reason}; choose a shorter folder"
        ) from None
    if not is_ours:
        raise EmbeddedStoreError(f"{short} belongs to another user; choose a shorter data folder")
    return short / "store.sock"


@contextlib.contextmanager
def locked(path: Path, check_wanted: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a file for a while.

    Args:
        path: Made if missing.
        check_wanted: Called while others hold it; what it raises ends the wait.
    """
    with path.open("ab") as file:
        while not try_lock(file):
            check_wanted()
            time.sleep(LOCK_POLL_S)
        yield


def try_lock(file: IO[bytes], *, shared: bool = False) -> bool:
    """Takes the lock of an open file if it is free; says whether it did."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
