"""Standard input, output and error of a process that was given none, or ones that nobody reads.

A descriptor from 0 to 2 that is closed would be taken by the next file or socket that is opened, and what
is printed would be written there.
"""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

_NAMES = ("stdin", "stdout", "stderr")
_SIGPIPE_CODE = 128 + 13
"""What a shell reports for a program whose reader has gone, as of `holdfast … | head -1`."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_missing() -> None:
    """Puts /dev/null where there is no standard stream; before anything is opened."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            _put_null(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def say(line: str) -> None:
    """Writes a line to standard output, in a thread of its own: it may be that nobody reads."""
    threading.Thread(target=_write_line, args=(line,), name="say", daemon=True).start()


def obeying_pipes(command: str, run: Callable[[], int]) -> int:
    """Runs a command that prints; returns its exit code, or another if what it prints cannot be written."""
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _put_null(1)  # else the interpreter writes again when it ends, and complains
        return _SIGPIPE_CODE
    except OSError as error:
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        _put_null(1)
        print(f"{command}: standard output: {str(error.strerror).lower()}", file=sys.stderr)
        return 1


def _write_line(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode(errors="backslashreplace"))
    except OSError as error:
        _log.warning("standard output: %s; it is not used", (error.strerror or str(error)).lower())
        _put_null(1)


def _put_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
