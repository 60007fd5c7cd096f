"""Work in the background outlives what goes wrong in it, says it once, and counts it."""

import asyncio
import errno
import logging

import pytest

from service.common import background
from service.common.background import TASKS, Trouble, error_counts, keep_going
from service.common.shortage import is_passing
from service.telemetry.metrics import Metrics

EMFILE = OSError(errno.EMFILE, "Too many open files")


@pytest.fixture
def restless(monkeypatch):
    monkeypatch.setattr(background, "RETRY_PAUSE_S", 0)


def failures(task):
    return error_counts()[TASKS.index(task)]


async def test_a_task_goes_on_whatever_a_turn_raises(restless, caplog):
    caplog.set_level(logging.INFO)
    before = failures("heartbeat")
    raises = [EMFILE, EMFILE, ValueError("odd"), EMFILE, None, EMFILE, None]
    done = asyncio.get_running_loop().create_future()

    async def turn():
        if not raises:
            done.set_result(None)
            await asyncio.Event().wait()
        if (error := raises.pop(0)) is not None:
            raise error

    task = asyncio.create_task(keep_going("heartbeat", turn))
    await asyncio.wait({task, done}, return_when=asyncio.FIRST_COMPLETED)
    assert task.cancel(), "it has ended"
    with pytest.raises(asyncio.CancelledError):
        await task
    assert failures("heartbeat") - before == 5
    told = "task heartbeat: [Errno 24] Too many open files; it goes on"
    again = "task heartbeat works again"
    assert caplog.messages == [told, "bug: task heartbeat failed; it goes on", again, told, again]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, False, False, False]


def test_who_ends_the_process_is_not_held_up():
    with pytest.raises(KeyboardInterrupt), Trouble("watchdog"):
        raise KeyboardInterrupt


def test_failures_are_shown_with_the_next_beat():
    metrics = Metrics()
    metrics.beat()
    line = 'holdfast_task_errors_total{task="models"} '
    before = float(metrics.scrape().decode().partition(line)[2].split()[0])
    with Trouble("models"):
        raise EMFILE
    metrics.beat()
    metrics.beat()
    assert f"{line}{before + 1}" in metrics.scrape().decode()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (EMFILE, True),
        (OSError(errno.ENOMEM, "no memory"), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOENT, "no file"), False),
        (ValueError("odd"), False),
    ],
)
def test_what_the_machine_lacks_for_a_moment_is_told_from_other_trouble(error, passes):
    assert is_passing(error) is passes
