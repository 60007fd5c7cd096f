"""The command `holdfast`, called in this process: what is said of wrong options needs no other."""

import contextlib
import io
import os
import sys
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
