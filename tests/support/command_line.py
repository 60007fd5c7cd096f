"""The command `holdfast`: called in this process, or many times from one that has imported it."""

import atexit
import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from service.command import main

LIMIT_S = 60
"""Longest time of a call in a process of its own."""


class Said(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def call(*words):
    """Calls `holdfast` with words; what it sets for its whole process is put back."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.multiple(sys, argv=["holdfast", *map(str, words)], excepthook=sys.excepthook),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            return Said(end.code or 0, out.getvalue(), err.getvalue())
    raise AssertionError("a command ends with its exit code")


class Starts:
    """Calls `holdfast`, each time in a forked process: see `tests/support/processes/starts.py`.

    Attributes:
        pid: Of the process that forks.
    """

    def __init__(self):
        self._asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.processes.starts"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
        self.pid = self._process.pid

    def fork(self, module, arguments, streams, *, variables=os.environ, folder="/", limit_s=0):
        """Calls `main` of a module, as the leader of a session, and returns the process as it runs.

        Args:
            module: One that a forked process has imported.
            arguments: `sys.argv`.
            streams: Files for standard input, output and error.
            variables: All of its environment.
            folder: Where it works.
            limit_s: Seconds after which SIGALRM ends it; 0 for none.
        """
        asked = {
            "module": module,
            "arguments": [*map(str, arguments)],
            "variables": dict(variables),
            "folder": folder,
            "limit_s": limit_s,
        }
        ending, teller = os.pipe()
        with open(teller, "wb"), self._lock:
            files = [*(stream.fileno() for stream in streams), teller]
            socket.send_fds(self._asks, [json.dumps(asked).encode()], files)
            pid = int(self._asks.recv(20))
        return Forked(pid, open(ending, "rb"))

    def start(self, *words, out, err, **options):
        """Calls `holdfast` with words, its output and errors going to files; see `fork`."""
        with open(os.devnull) as nothing:
            streams = (nothing, out, err)
            return self.fork(
                "service.command", ["holdfast", *words], streams, folder=os.getcwd(), **options
            )

    def call(self, *words, **variables):
        """Calls `holdfast` with words and variables of the environment, and waits until it has ended."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            given = {**os.environ, **variables}
            code = self.start(*words, out=out, err=err, variables=given, limit_s=LIMIT_S).wait()
            out.seek(0)
            err.seek(0)
            return Said(code, out.read(), err.read())

    def close(self):
        self._asks.close()
        self._process.wait(20)


class Forked:
    """What others need of `subprocess.Popen`, of a process that `Starts` has started.

    Attributes:
        pid: Its process id.
        stdout: What reads its standard output, if somebody put it here.
    """

    def __init__(self, pid, ending):
        self.pid = pid
        self.stdout = None
        self._ending = ending
        self._code = None

    def poll(self):
        """Returns the exit code, None while there is none."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout=None):
        """Returns the exit code, negative for a signal; raises subprocess.TimeoutExpired if it runs on."""
        if self._code is None:
            if not select.select([self._ending], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("holdfast", timeout)
            with self._ending:
                self._code = int(self._ending.read())
        return self._code

    def send_signal(self, number):
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has, and its exit code is on the way
                os.kill(self.pid, number)

    def kill(self):
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def starts():
    """Returns the starts of this process."""
    started = Starts()
    atexit.register(started.close)
    return started
