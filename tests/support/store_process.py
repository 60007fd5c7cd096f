"""Stores as processes that can be killed, paused, and put back to an older copy of their files."""

import os
import shutil
import signal
import socket
import subprocess

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store.embedded import find_binary
from tests.support.waiting import wait_for


def free_port():
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class StoreProcess:
    """A Valkey, or another binary of the family, on a port of its own.

    Args:
        folder: Of its files.
        options: As in its configuration file, with "_" for "-".
        binary: The server to run.

    Attributes:
        pid: Its process.
    """

    def __init__(self, folder, *, binary=None, port=None, **options):
        self.folder = folder
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=10)
        folder.mkdir(exist_ok=True)
        settings = {"port": self.port, "dir": folder, "logfile": folder / "log", "save": ""}
        settings |= {"appendonly": "yes", "repl_diskless_sync_delay": 0, **options}
        self._command = [str(binary or find_binary()), "--bind", "127.0.0.1"]
        for name, value in settings.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.resume()
        self.kill()
        self.client.close()

    def start(self):
        """Starts it and waits until it has read its file."""
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            restore_signals=False,  # Python ignores SIGXFSZ, and so shall it: see `limit_file_size`
        )
        self.pid = self._process.pid
        wait_for(self._answers, 20)

    def kill(self):
        """Kills it with SIGKILL."""
        self._process.kill()
        self._process.wait(20)

    def pause(self):
        """Stops it where it is."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self):
        """Lets it go on."""
        self._process.send_signal(signal.SIGCONT)

    def save(self, copy):
        """Copies its files, with all that is committed now."""
        shutil.rmtree(copy, ignore_errors=True)
        wait_for(lambda: self._count("WAITAOF", 1, 0, 5000)[0] == 1, 20)
        shutil.copytree(self.folder, copy)

    def put_back(self, copy):
        """Kills it and starts it on the files of a copy, its own or another's."""
        self.kill()
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)
        self.start()

    def follow(self, primary):
        """Makes it a replica, and waits until it has what the primary has."""
        self.client.replicaof("127.0.0.1", primary.port)
        wait_for(lambda: primary._count("WAIT", 1, 1000) >= 1, 20)

    def calls(self, command):
        """Returns how often a command was called."""
        return self.client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]

    def _count(self, *command):
        with self.client.pipeline(transaction=False) as pipeline:  # one connection for both
            pipeline.set("marker", "")
            pipeline.execute_command(*command)
            return pipeline.execute()[1]

    def _answers(self):
        assert self._process.poll() is None, (self.folder / "log").read_text()[-500:]
        try:
            return self.client.ping()
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return False
