"""The form of log lines, and how many of one kind there may be."""

import asyncio
import json
import logging
import subprocess
import sys

import pytest

from service.telemetry import log_lines, logs
from service.telemetry.log_lines import LINES, JsonFormatter, LineLimit, TextFormatter, fields
from tests.support.waiting import wait_for


def record(message="said", *values, level=logging.WARNING, extra=None, exc_info=None):
    logger = logging.getLogger("service.some")
    return logger.makeRecord(logger.name, level, __file__, 1, message, values, exc_info, extra=extra or {})


def test_a_json_line_is_one_object():
    line = JsonFormatter("worker").format(record("%d said\n“no”", 2, extra=fields(reason="X", rows=3)))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("ts")[-1] == "Z"
    assert said.pop("pid") > 0
    assert said == {
        "level": "warning",
        "logger": "service.some",
        "message": "2 said\n“no”",
        "process": "worker",
        "reason": "X",
        "rows": 3,
    }


@pytest.mark.parametrize("value", [object(), b"\xff", "\udc80", float("inf"), {1, 2}])
def test_a_json_line_comes_out_whatever_its_fields_are(value):
    assert (
        json.loads(JsonFormatter("server").format(record(extra=fields(value=value))))["value"] is not None
    )


def test_a_trace_is_in_the_same_json_line_and_below_the_text():
    try:
        raise ValueError("broken")
    except ValueError:
        failed = record(exc_info=sys.exc_info())
    assert "ValueError: broken" in json.loads(JsonFormatter("server").format(failed))["exception"]
    first, *rest = TextFormatter().format(failed).splitlines()
    assert " WARNING service.some[" in first
    assert rest[-1] == "ValueError: broken"


def test_nobody_can_write_a_line_of_his_own_into_the_text():
    line = TextFormatter().format(record("from %s", "x\n2026 INFO forged", extra=fields(given="a\nb\x1b")))
    assert len(line.splitlines()) == 1
    assert r"given=a\nb\x1b" in line


@pytest.fixture
def said():
    """Lines that a logger with a limit lets through, as (message, fields)."""
    lines = []

    class Keeper(logging.Handler):
        def emit(self, record):
            lines.append((record.getMessage(), getattr(record, "holdfast_fields", {})))

    keeper = Keeper()
    keeper.addFilter(LineLimit())
    root = logging.getLogger("service")
    root.addHandler(keeper)
    yield lines, keeper.filters[0]
    root.removeHandler(keeper)


def test_of_one_kind_some_lines_are_said_and_the_rest_are_counted(said):
    lines, limit = said
    logger = logging.getLogger("service.some")
    for number in range(LINES + 90):
        logger.warning("call %d failed", number, extra=fields(reason="STORE_UNAVAILABLE"))
        logger.info("call %d", number)
    logger.warning("call %d failed", 0, extra=fields(reason="INTERNAL"))
    assert sum("failed" in message for message, _ in lines) == LINES + 1, "another reason is another kind"
    limit.tell_all()
    limit.tell_all()
    told = [about for _, about in lines if "left_out" in about]
    assert told == [
        {"left_out": 90, "like": "call %d failed", "of": "service.some", "reason": "STORE_UNAVAILABLE"}
    ]


async def test_the_count_is_told_when_the_time_is_over(said, monkeypatch):
    lines, _ = said
    monkeypatch.setattr(log_lines, "WINDOW_S", 0.05)
    logger = logging.getLogger("service.some")
    for _ in range(LINES + 5):
        logger.warning("failed")
    await asyncio.to_thread(wait_for, lambda: any("left_out" in about for _, about in lines))
    assert lines[-1][1]["left_out"] == 5
    logger.warning("failed")
    assert lines[-1][0] == "failed", "a new time has begun"


def test_kinds_do_not_pile_up(said, monkeypatch):
    _, limit = said
    monkeypatch.setattr(log_lines, "WINDOW_S", 0.0)
    logger = logging.getLogger("service.some")
    for number in range(3 * log_lines._MOST_KINDS):
        logger.warning(f"made up {number}")
    assert len(limit._windows) <= log_lines._MOST_KINDS + 1


def test_kinds_do_not_pile_up_while_all_of_them_are_new(said):
    """A library that makes up each message anew fills neither the memory nor the log."""
    lines, limit = said
    logger = logging.getLogger("service.some")
    for number in range(3 * log_lines._MOST_KINDS):
        logger.warning(f"made up {number} " + "x" * 1000)
    assert len(limit._windows) <= log_lines._MOST_KINDS + 1
    assert max(len(message) for _, message, _ in limit._windows) <= log_lines._KIND_CHARS
    assert len(lines) == log_lines._MOST_KINDS + LINES
    limit.tell_all()
    [told] = [about for _, about in lines if "left_out" in about]
    assert (told["like"], told["left_out"]) == (log_lines._ANY_OTHER, 2 * log_lines._MOST_KINDS - LINES)


def test_the_mark_of_a_session_hides_it_and_is_the_same_with_the_same_key():
    mark = logs.session_mark("acme", "user-42")
    assert mark == logs.session_mark("acme", "user-42")
    assert mark != logs.session_mark("other", "user-42")
    assert len(mark) == 12
    key = logs.key()
    try:
        logs.set_key(b"another")
        assert mark != logs.session_mark("acme", "user-42")
    finally:
        logs.set_key(key)


UNCAUGHT = """
import asyncio, gc, threading, warnings
from service.telemetry import logs
logs.configure("server", "json")
warnings.warn("a warning")
class Bad:
    def __del__(self):
        raise RuntimeError("in a destructor")
async def forget():
    asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
async def fail():
    raise RuntimeError("in a task")
def in_thread():
    raise RuntimeError("in a thread")
del (bad := [Bad()])[:]
asyncio.run(forget())
gc.collect()
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
raise RuntimeError("at the top")
"""


@pytest.mark.process
def test_what_nobody_caught_is_a_line_like_any_other():
    done = subprocess.run([sys.executable, "-W", "always", "-c", UNCAUGHT], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["message"] + line.get("exception", "") for line in lines]
    for expected in ("a warning", "in a destructor", "in a task", "in a thread", "at the top"):
        assert any(expected in text for text in said), expected
    assert (done.returncode, len(lines)) == (1, 5)
