"""The clock of the event loop beside the CPU time of the thread."""

import time

from service.engine import busy_clock
from service.engine.busy_clock import BusyClock


def spin(cpu_s):
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass


def test_time_on_a_core_is_busy():
    clock = BusyClock()
    before_s = clock.read_s()
    spin(0.05)
    assert clock.read_s() - before_s > 0.04  # the kernel counts in ticks of a few milliseconds
    clock.close()


def test_without_the_kernels_count_it_is_cpu_time(monkeypatch):
    monkeypatch.setattr(busy_clock, "_SCHEDSTAT", "/nowhere")
    clock = BusyClock()
    before_s, cpu_s = clock.read_s(), time.thread_time()
    spin(0.01)
    assert clock.read_s() - before_s <= time.thread_time() - cpu_s + 0.001
    clock.close()
