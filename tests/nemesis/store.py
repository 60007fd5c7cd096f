"""A store of our own, one Redis or Valkey on a unix socket, that can be killed, damaged and filled up."""

import contextlib
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store.embedded import find_binary
from tests.nemesis import processes
from tests.support.waiting import time_until


class StoreProcess:
    """A single server with an append-only file. A context manager, started and answering.

    Args:
        folder: Made if missing; its files and its socket `s`.
        options: Further options of the server, underscores for dashes.
        binary: Of Redis or Valkey; default is the one of the embedded store.

    Attributes:
        socket_path: Where it listens.
        url: The same for `--store`.
        pid: Its process.
    """

    def __init__(self, folder, *, binary=None, **options):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket_path = self.folder / "s"
        self.url = f"unix://{self.socket_path}"
        self._binary = binary or find_binary()
        self._options = {
            "port": "0", "unixsocket": self.socket_path, "dir": self.folder, "appendonly": "yes",
            "appendfsync": "everysec", "aof-load-truncated": "yes", "save": "",
            "maxmemory-policy": "noeviction", "logfile": self.folder / "log",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }  # fmt: skip

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        processes.resume(self.pid)
        self.kill()

    def start(self):
        """Starts it and waits until it has read its file and answers; returns the seconds it took."""
        arguments = [str(part) for name, value in self._options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [self._binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            restore_signals=False,  # Python ignores SIGXFSZ, and so shall it: see `limit_file_size`
            start_new_session=True,
        )
        self.pid = self._process.pid
        return time_until(self._answers, 30, f"the store did not start; see {self.folder}/log")

    def kill(self):
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def restart(self):
        """Kills it and starts it again from its file."""
        self.kill()
        return self.start()

    def client(self):
        """Returns a client, as a context manager."""
        return redis.Redis(unix_socket_path=str(self.socket_path), retry=Retry(NoBackoff(), 0))

    def sync(self):
        """Returns once its file has everything that was written so far."""
        with self.client() as client:
            client.set("nemesis:sync", "")
            try:
                client.execute_command("WAITAOF", 1, 0, 5000)
            except redis.ResponseError:  # Redis before 7.2 writes at most two seconds late
                time.sleep(2.5)
            client.delete("nemesis:sync")

    def truncate_tail(self, size_bytes):
        """Takes bytes off the end of the append-only file of a store that is down."""
        assert self._process.poll() is not None, "a store that runs writes on"
        truncate_tail(self.folder, size_bytes)

    def fill_memory(self):
        """Leaves it no memory for anything new; what its connections hold comes and goes."""
        with self.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)

    def free_memory(self):
        """Takes the limit away."""
        with self.client() as client:
            client.config_set("maxmemory", 0)

    def fill_disk(self):
        """Makes every further write to its append-only file fail."""
        processes.limit_file_size(self.pid, append_only_file(self.folder).stat().st_size)

    def free_disk(self):
        """Lets it write again."""
        processes.limit_file_size(self.pid, None)

    def _answers(self):
        assert self._process.poll() is None, f"the store ended; see {self.folder}/log"
        not_yet = (redis.ConnectionError, redis.exceptions.BusyLoadingError)
        with contextlib.suppress(*not_yet), self.client() as client:
            return client.ping()
        return False


def append_only_file(folder):
    """Returns the file to which a store appends."""
    return max(Path(folder).glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)


def truncate_tail(folder, size_bytes):
    """Takes bytes off the end of an append-only file; the store must be down."""
    path = append_only_file(folder)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(max(0, size - size_bytes))
