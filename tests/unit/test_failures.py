"""Whose turn it is, and how much those who fail may take."""

import pytest

from service.engine.allowance import AT_ONCE_S, SHARE, Allowance
from service.engine.effects import Kind
from service.engine.failures import Job, Line


def jobs(names):
    """Returns a job for each name, of the tenant that is its first letter."""
    return [Job(Kind.SEARCH, name[:1].encode(), [[name]]) for name in names]


def name_of(job):
    [[name]] = job.parts
    return name


def test_tenants_have_turns_however_many_of_one_wait():
    line = Line(1)
    for job in jobs([f"a{number}" for number in range(5)] + ["b0", "b1", "c0"]):
        line.join(job)
    had = []
    while (job := line.next()) is not None:
        had.append(name_of(job))
        assert line.next() is None
        line.leave()
    assert had == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_as_many_as_may_have_their_turn_at_once():
    line = Line(2)
    for job in jobs(["a0", "a1", "a2"]):
        line.join(job)
    assert [name_of(line.next()), name_of(line.next()), line.next()] == ["a0", "a1", None]
    line.leave()
    assert [name_of(line.next()), line.next()] == ["a2", None]


def test_what_fails_may_take_a_moment_at_once_and_then_its_share():
    allowance, now_s, taken_s = Allowance(), 1000.0, 0.0
    while not allowance.pause_s(now_s) and taken_s < 1.0:
        allowance.take(0.001, now_s)
        taken_s += 0.001
    assert taken_s == pytest.approx(AT_ONCE_S, abs=0.002)
    for _ in range(1000):
        now_s += allowance.pause_s(now_s)
        allowance.take(0.001, now_s)
    assert 1.0 / (now_s - 1000.0) == pytest.approx(SHARE, rel=0.05)
    assert allowance.pause_s(now_s + 1.0) == 0
