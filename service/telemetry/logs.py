"""The log of a process: where lines go, from which level on, and what stands for a session in them.

Lines go to standard error, in one form for all processes of a server (`log_lines`). Session ids may name
people, so a line has the mark of an id instead; its key is drawn at start and handed to the workers: so
lines of one session can be put together, and nobody can try ids against them.

This is the one place for another destination: a handler that `configure` adds to the root logger sees every
line with its fields.
"""

import asyncio
import atexit
import functools
import hmac
import logging
import secrets
import signal
import sys
import threading
from types import TracebackType

from service.telemetry.log_lines import JsonFormatter, LineLimit, TextFormatter
from service.telemetry.log_writer import WriterHandler

VERBOSE = signal.SIGUSR1
USUAL = signal.SIGUSR2
"""Signals that set the level to debug, and to what the settings say; repeated, they change nothing."""

_MARK_BYTES = 6

_log = logging.getLogger(__name__)
_key = secrets.token_bytes(32)
_is_verbose = False


def configure(process: str, form: str = "auto", level: str = "info") -> None:
    """Sends the lines of this process to standard error, uncaught exceptions and warnings among them.

    Args:
        process: What it is: server, supervisor or worker.
        form: json, text, or auto: text on a terminal and json elsewhere.
        level: Of the lines that are said: debug, info, warning or error.
    """
    is_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = WriterHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter(process) if is_json else TextFormatter())
    limit = LineLimit()
    handler.addFilter(limit)
    atexit.register(limit.tell_all)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable


def obey_level_signals(usual: str) -> None:
    """Has VERBOSE and USUAL change the level from now on, in the loop that runs.

    Args:
        usual: Level of the settings.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(VERBOSE, functools.partial(_set_level, "debug", is_verbose=True))
    loop.add_signal_handler(USUAL, functools.partial(_set_level, usual, is_verbose=False))


def flush() -> None:
    """Has the lines so far written, before something else is said on standard error; see `log_writer`."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def is_verbose() -> bool:
    """Whether a signal has set the level to debug."""
    return _is_verbose


def key() -> bytes:
    """Returns the key of `session_mark`."""
    return _key


def set_key(value: bytes) -> None:
    """Makes marks with the key of another process."""
    global _key
    _key = value


def session_mark(tenant: str, session_id: str) -> str:
    """Returns what stands for a session in the log, 12 characters, the same for the same id."""
    identity = f"{tenant}:{session_id}".encode(errors="replace")
    return hmac.digest(_key, identity, "sha256")[:_MARK_BYTES].hex()


def _set_level(level: str, *, is_verbose: bool) -> None:
    global _is_verbose
    _is_verbose = is_verbose
    logging.getLogger().setLevel(level.upper())
    _log.warning("lines from level %s on are logged", level)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # Ctrl-C was meant
        _log.critical("bug: nobody caught an exception", exc_info=(kind, error, trace))


def _log_thread(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is not None:
        name = what.thread.name if what.thread else "?"
        exception = (what.exc_type, what.exc_value, what.exc_traceback)
        _log.critical("bug: an exception ended thread %s", name, exc_info=exception)


def _log_unraisable(what: "sys.UnraisableHookArgs") -> None:
    if what.exc_value is not None:
        exception = (what.exc_type, what.exc_value, what.exc_traceback)
        _log.error("bug: %s in %r", what.err_msg or "exception ignored", what.object, exc_info=exception)
