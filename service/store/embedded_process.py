"""The process of an embedded store: how it is started, what it answers, and why it has ended. Blocking."""

import contextlib
import os
import re
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.common.process_ending import ending_of

ANSWER_TIMEOUT_S = 5.0

ALLOCATOR_SETTINGS = "glibc.malloc.tcache_max=8192:glibc.malloc.tcache_count=4000"
"""The bundled store allocates by the C library, whose cache of free blocks ends at 1 KiB, just below a
record. Beyond it each commit searches the heap: with 100,000 sessions that nearly doubles its work."""

_WARNING = re.compile(r"^\d+:\w .*? # (?!WARNING)(.*)$", re.MULTILINE)
"""A line of its log that says why it ends; those about the machine begin with WARNING."""

_LAST_WARNINGS = 2
_LOG_TAIL_BYTES = 4096


class Found(NamedTuple):
    """A store that answers.

    Attributes:
        pid: Its process.
        is_loading: It still reads its file.
    """

    pid: int
    is_loading: bool


class StoreSilent(Exception):
    """Somebody listens on the socket and does not answer in time."""


def client_of(socket_path: Path) -> redis.Redis:
    """Returns a client that tries once."""
    return redis.Redis(
        unix_socket_path=str(socket_path), socket_timeout=ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )


def look(socket_path: Path) -> Found | None:
    """Returns what answers on a socket; None if nobody listens there.

    INFO is asked for, since it is answered by a store that reads its file or cannot write it, too.

    Raises:
        StoreSilent: No answer, or none that says who it is.
    """
    try:
        with client_of(socket_path) as client:
            info = client.info()
            return Found(int(info["process_id"]), bool(int(info["loading"])))
    except redis.ConnectionError:
        return None
    except (redis.RedisError, KeyError, ValueError) as error:
        raise StoreSilent(str(error)) from None


class Lifeline:
    """A connection on which nothing is asked while all is well.

    It ends with the store, and leads to that very process, also when its socket is deleted.

    Args:
        socket_path: Where it listens.

    Raises:
        OSError: Nobody does.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._inode = socket_path.stat().st_ino
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(socket_path))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Returns the descriptor, readable once the store has gone."""
        return self._socket.fileno()

    @property
    def is_alive(self) -> bool:
        """Whether the store lives."""
        poll = select.poll()  # select takes no descriptor above 1023
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    @property
    def is_reachable(self) -> bool:
        """Whether others find it on its socket."""
        try:
            return self._socket_path.stat().st_ino == self._inode
        except OSError:
            return False

    def write_anew(self, folder: Path) -> None:
        """Has the store write all that it has into the folder of its files, which was deleted.

        Raises:
            OSError: It does not answer, or cannot.
        """
        for name, value in (("dir", str(folder)), ("appendonly", "no"), ("appendonly", "yes")):
            self._call("CONFIG", "SET", name, value)
        while True:
            said = self._call("INFO", "persistence")
            if b"aof_rewrite_in_progress:0" in said and b"aof_rewrite_scheduled:0" in said:
                break
            time.sleep(0.01)
        if b"aof_last_bgrewrite_status:ok" not in said:
            raise OSError("its append-only file could not be written anew")

    def shut_down(self) -> None:
        """Has the store end and waits until it is gone, as long as it may take to answer."""
        with contextlib.suppress(OSError):
            self._call("SHUTDOWN", "NOSAVE")

    def close(self) -> None:
        """Closes it."""
        self._socket.close()

    def _call(self, *command: Any) -> Any:
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._socket.sendall(hiredis.pack_command(command))
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            received = self._socket.recv(4096)
            if not received:
                raise OSError("it has ended")
            reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise OSError(str(reply))
        return reply


class StoreProcess:
    """A store started here, in a session of its own: neither Ctrl-C nor the end of this process reaches it.

    Args:
        binary: Valkey or Redis.
        folder: Its append-only file goes to `store` in it, its log beside that.
        socket_path: Where it listens.
        fsync: appendfsync.
        lock: An open file whose lock it keeps for as long as it lives.
    """

    def __init__(self, binary: Path, folder: Path, socket_path: Path, fsync: str, lock: IO[bytes]) -> None:
        options = {
            "port": "0",
            "unixsocket": str(socket_path),
            "unixsocketperm": "700",
            "dir": str(folder / "store"),
            "appendonly": "yes",
            "appendfsync": fsync,
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(folder / "store.log"),
            "daemonize": "no",
            **({"enable-protected-configs": "local"} if _protects_configs(binary) else {}),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock.fileno()],
            env={**os.environ, "GLIBC_TUNABLES": ALLOCATOR_SETTINGS},
        )
        self.pid = self._process.pid

    def ending(self, limit_s: float = 0.0) -> str | None:
        """Returns how it has ended, the name of a signal or an exit code; None while it lives.

        Args:
            limit_s: Longest wait for that; a process that dies closes its connections before it is dead.
        """
        try:
            return ending_of(self._process.wait(limit_s))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends it at once; one that has not answered yet has acknowledged nothing."""
        self._process.kill()
        self._process.wait()


def _protects_configs(binary: Path) -> bool:
    """Whether the directory of a running store may only be changed if that was allowed: since version 7."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)", said)
    return found is not None and int(found[1]) >= 7


def last_words(log: Path, since_bytes: int) -> str:
    """Returns what a store has warned of last in its log, beyond a position; "" if of nothing."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since_bytes, end - _LOG_TAIL_BYTES) if since_bytes <= end else 0)
            tail = file.read(_LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return "; ".join(found.strip().rstrip(".") for found in _WARNING.findall(tail)[-_LAST_WARNINGS:])


def size_of(log: Path) -> int:
    """Returns the length of a log, bytes; 0 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return 0
