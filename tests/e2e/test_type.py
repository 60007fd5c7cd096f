"""`holdfast demo --type` in a real pseudo-terminal: type, leave, come back."""

import os
import pty
import re
import select
import signal
import sys
import time

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = "from service.command import main; main()"


def visit(data_dir, keys):
    """Types the keys, then Ctrl-D; returns everything the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        arguments = ["-c", PROGRAM, "demo", "--type", "--data-dir", str(data_dir)]
        os.execv(sys.executable, [sys.executable, *arguments])
    status = None
    try:
        shown = read_until(terminal, b"network")
        os.write(terminal, keys + b"\x04")
        shown += read_until(terminal, None)
        status = os.waitpid(pid, 0)[1]
    finally:
        if status is None:
            os.kill(pid, signal.SIGINT)  # the demo stops its server on the way out
            os.waitpid(pid, 0)
        os.close(terminal)
    assert status == 0, shown
    return shown.decode(errors="replace")


def read_until(terminal, mark, timeout_s=30):
    shown, deadline_s = b"", time.monotonic() + timeout_s
    while mark is None or mark not in shown:
        assert time.monotonic() < deadline_s, shown
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other side has closed
                return shown
    return shown


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_what_was_typed_is_remembered(tmp_path):
    first = visit(tmp_path / "data", b"import num")
    assert "has never met" in first
    assert re.search(r"position 10; run it again", first)
    second = visit(tmp_path / "data", b"py")
    assert "remembers" in second
    assert re.search(r"position 12; run it again", second)
