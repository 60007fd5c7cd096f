"""Log lines go out in a thread: nobody waits for a reader, and what found no room is counted."""

import logging
import os
import threading

import pytest

from service.telemetry import log_writer
from service.telemetry.log_lines import TextFormatter
from service.telemetry.log_writer import WriterHandler


@pytest.fixture
def pipe(monkeypatch):
    """Gives a logger, and the end of a pipe from which its lines are read."""
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.05)
    reader, writer = os.pipe()
    handler = WriterHandler(writer)
    handler.setFormatter(TextFormatter())
    logger = logging.Logger("service.some")
    logger.addHandler(handler)
    with os.fdopen(reader) as lines:
        yield logger, lines, handler
        os.close(writer)


def test_lines_come_in_order(pipe):
    logger, lines, handler = pipe
    for number in range(100):
        logger.warning("line %d", number)
    handler.flush()
    assert [int(lines.readline().split()[-1]) for _ in range(100)] == list(range(100))


def test_who_logs_never_waits_and_what_is_lost_is_counted(pipe):
    logger, lines, handler = pipe
    count = 2 * log_writer.MOST_BYTES // 1000
    for number in range(count):
        logger.warning("line %s %d", "x" * 1000, number)
    logger.critical("nor is the end of a process held up by it for long")
    handler.flush()
    seen = []

    def read_all():
        for line in lines:
            if line.endswith("the last\n"):
                return
            seen.append(line)

    reading = threading.Thread(target=read_all)
    reading.start()
    while handler._waiting_bytes:
        handler.flush()
    logger.warning("the last")
    reading.join(20)
    assert not reading.is_alive()
    told = [line for line in seen if "were left out" in line]  # once, or on a slow machine again
    left_out = sum(int(line.rpartition("left_out=")[2]) for line in told)
    assert left_out > 0
    assert len(seen) - len(told) + left_out == count + 1
    assert all("WARNING" in line for line in told)


def test_a_reader_that_went_away_or_does_not_block_costs_nothing(pipe):
    logger, lines, handler = pipe
    os.set_blocking(handler._descriptor, False)
    for _ in range(200):
        logger.warning("x" * 1000)
    lines.read(100)
    lines.close()
    logger.warning("nobody reads this")
    handler.flush()
    logger.warning("nor this")
    handler.flush()
    assert handler._lost_count > 0
