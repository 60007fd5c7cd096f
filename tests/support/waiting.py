"""Waits for what other processes do, by polling."""

import contextlib
import time

import redis


def wait_for(condition, timeout_s=20.0, what="not in time"):
    """Returns what a condition gives once that is true; that a store is away is no answer."""
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.01  # grows, since what is asked often takes a process or a page of metrics
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if found := condition():
                return found
        assert time.monotonic() < deadline_s, what
        time.sleep(pause_s)
        pause_s = min(0.05, 1.2 * pause_s)


def time_until(condition, timeout_s=20.0, what="not in time"):
    """Returns the seconds until a condition holds."""
    started_s = time.monotonic()
    wait_for(condition, timeout_s, what)
    return time.monotonic() - started_s
