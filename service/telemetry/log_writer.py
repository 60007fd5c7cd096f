"""Writes log lines in a thread of its own: whoever logs never waits for whoever reads.

A pipe that nobody reads, a terminal that was stopped, a disk that hangs: each would else hold up the event
loop, and with it every call, at the next line. Lines that find no room are counted, and told of once there
is some.
"""

import collections
import contextlib
import logging
import os
import select
import threading
import time

from service.telemetry.log_lines import fields

MOST_BYTES = 1 << 20
"""Of lines that wait to be written."""

FLUSH_S = 1.0
"""Longest wait for lines to be written, at the end and after a critical one."""


class WriterHandler(logging.Handler):
    """Sends lines to a descriptor.

    Args:
        descriptor: Open for writing.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: collections.deque[bytes] = collections.deque()
        self._waiting_bytes = 0  # the one under way included
        self._lost_count = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Has a line written later; drops it if too many wait."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 -- as every handler does
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > MOST_BYTES:
                self._lost_count += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()
        if record.levelno >= logging.CRITICAL:
            self.flush()

    def flush(self) -> None:
        """Waits until all is written, but no longer than FLUSH_S."""
        deadline_s = time.monotonic() + FLUSH_S
        with self._changed:
            while self._waiting_bytes and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines.popleft()
                lost_count, self._lost_count = self._lost_count, 0
            try:
                if lost_count:
                    self._write(self._told(lost_count))
                    lost_count = 0
                self._write(line)
            except Exception:  # noqa: BLE001 -- closed, no room, no memory: nobody can be told now
                lost_count += 1
            with self._changed:
                self._lost_count += lost_count
                self._waiting_bytes -= len(line)
                self._changed.notify_all()

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._descriptor, rest) :]
                continue
            self._wait_for_room()  # whoever shares it made it non-blocking

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()

    def _told(self, lost_count: int) -> bytes:
        about = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
        about["msg"] = "lines before this one were left out, for nobody took them"
        record = logging.makeLogRecord(about | fields(left_out=lost_count))
        return f"{self.format(record)}\n".encode(errors="backslashreplace")
