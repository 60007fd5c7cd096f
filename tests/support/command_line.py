"""The command `holdfast`: called in this process, or many times from one that has imported it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from service.command import main


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
    """Calls `holdfast`, each time in a forked process: see `tests/support/processes/starts.py`."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="starts-")
        command = [sys.executable, "-m", "tests.support.processes.starts"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def call(self, *words, **variables):
        """Calls `holdfast` with words and variables of the environment, and waits until it has ended."""
        out, err = (Path(self._folder.name) / name for name in ("out", "err"))
        for path in (out, err):
            path.write_bytes(b"")
        asked = {"arguments": [*map(str, words)], "variables": variables, "out": str(out), "err": str(err)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        code = int(self._process.stdout.readline())
        return Said(code, out.read_text(), err.read_text())

    def close(self):
        self._process.communicate(timeout=20)
        self._folder.cleanup()
