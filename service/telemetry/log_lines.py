"""The form of log lines, JSON or text, and how many of one kind there may be.

A JSON line is one object: `ts` (RFC 3339, UTC), `level`, `logger`, `message`, `pid`, `process` (server,
supervisor or worker), further fields of the line, and `exception` with the trace where there is one.
"""

import asyncio
import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

LINES = 10
WINDOW_S = 10.0
"""Lines of one kind, from warnings on, that are let through in so many seconds; then one says how many were
left out. A store that is away fails every call, and its first failures say all there is to know."""

_MOST_KINDS = 1000
_KIND_CHARS = 200
"""Bounds on what is remembered of kinds, since a library may make up each message anew."""

_ANY_OTHER = "(any other)"
"""The kind of all lines of a logger that come while as many kinds as there may be are remembered."""

_FIELDS = "holdfast_fields"

_log = logging.getLogger(__name__)


def fields(**values: Any) -> dict[str, Any]:
    """Returns `extra=` of a log line that has these fields."""
    return {_FIELDS: values}


class JsonFormatter(logging.Formatter):
    """One object per line.

    Args:
        process: What the process is.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Returns a line without its end."""
        line = {
            "ts": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            "process": self._process,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode(errors="replace").decode()


class TextFormatter(logging.Formatter):
    """For eyes: time, level, logger and pid, message, fields; below it a trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a line, or several with a trace, without its end."""
        words = [f"{_time_of(record)} {record.levelname} {record.name}[{record.process}]"]
        words.append(printable(record.getMessage()))
        words += [f"{name}={printable(str(value))}" for name, value in getattr(record, _FIELDS, {}).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class LineLimit(logging.Filter):
    """Lets LINES lines of a kind through in WINDOW_S, and tells how many it did not.

    A kind is a logger, a message before its values are filled in, and the field `reason`. Below warnings
    everything goes through. Where no event loop runs, it tells with the next of the kind or at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, Any], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is let through."""
        if record.levelno < logging.WARNING or record.name == __name__:
            return True
        reason = getattr(record, _FIELDS, {}).get("reason")
        kind = (record.name, str(record.msg)[:_KIND_CHARS], reason)
        now_s = time.monotonic()
        with self._lock:
            over = self._end_windows(now_s)
            if kind not in self._windows and len(self._windows) >= _MOST_KINDS:
                kind = (record.name, _ANY_OTHER, None)
            window = self._windows.setdefault(kind, _Window(now_s + WINDOW_S))
            window.line_count += 1
            left_out = window.line_count - LINES
        for ended in over.items():
            _tell(*ended)
        if left_out == 1:
            self._tell_later(kind, window, now_s)
        return left_out <= 0

    def tell_all(self) -> None:
        """Tells of everything that was left out and not told yet."""
        with self._lock:
            windows, self._windows = self._windows, {}
        for kind, window in windows.items():
            _tell(kind, window)

    def _tell_later(self, kind: tuple[str, str, Any], window: "_Window", now_s: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_later(window.ends_s - now_s, _tell, kind, window)

    def _end_windows(self, now_s: float) -> "dict[tuple[str, str, Any], _Window]":
        """Takes out the windows that are over; the oldest are first."""
        over = {}
        for kind, window in self._windows.items():
            if now_s < window.ends_s:
                break
            over[kind] = window
        for kind in over:
            del self._windows[kind]
        return over


class _Window:
    """Lines of one kind since it began."""

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.line_count = 0


def _tell(kind: tuple[str, str, Any], window: _Window) -> None:
    left_out = window.line_count - LINES
    if left_out > 0:
        window.line_count = 0  # told
        logger, message, reason = kind
        about = fields(left_out=left_out, like=message, of=logger, **({"reason": reason} if reason else {}))
        _log.warning("more lines like one before were left out", extra=about)


def _time_of(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """Returns a text in which nobody can hide the start of another line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
