"""The metrics beside collectors of prometheus_client, and those of several processes as one."""

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from holdfast.errors import ServiceError
from service.engine.report import BatchReport
from service.telemetry.metrics import SIZE_BYTES, Metrics, ServedModel, scrape_together
from service.telemetry.reference import to_markdown

ROOT = Path(__file__).parents[2]
REASONS = sorted(kind.reason for kind in ServiceError.__subclasses__())
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
VALUES = st.lists(st.one_of(st.sampled_from(SIZES), st.floats(0, 1000)), max_size=70)


class Reference:
    """Some of the metrics, told by prometheus_client."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.steps = Counter("holdfast_steps", "Steps committed: tokens applied.", registry=self.registry)
        text = "Chunks answered with an error, and calls refused because of their caller."
        self.errors = Counter("holdfast_errors", text, ["reason"], registry=self.registry)
        for reason in REASONS:
            self.errors.labels(reason)
        self.batch_size = Histogram(
            "holdfast_batch_size", "Chunks run together.", buckets=SIZES, registry=self.registry
        )
        self.store_up = Gauge("holdfast_store_up", "1 while the store answers.", registry=self.registry)

    def lines(self):
        text = generate_latest(self.registry).decode()
        return [line for line in text.splitlines() if "_created" not in line]


def family(line):
    name = line.split()[2] if line.startswith("#") else line.split("{")[0].split()[0]
    return name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum").removesuffix("_total")


def value(text, name):
    return next(
        float(line.split()[1]) for line in text.decode().splitlines() if line.startswith(f"{name} ")
    )


def test_the_text_is_that_of_prometheus_client():
    metrics, reference = Metrics(), Reference()
    for size in (1, 2, 3, 64, 65, 256, 1000):
        metrics.count(BatchReport(runs=[(size, 0.001)]))
        reference.batch_size.observe(size)
    metrics.count(BatchReport(step_count=7, answers=[([0.001, 0.002], 1)]))
    reference.steps.inc(7)
    metrics.refused("OVERLOADED")
    reference.errors.labels("OVERLOADED").inc()
    metrics.store_up.set(True)
    reference.store_up.set(True)
    expected = reference.lines()
    families = {family(line) for line in expected}
    assert [line for line in metrics.scrape().decode().splitlines() if family(line) in families] == expected


@given(VALUES, st.integers(1, 99))
def test_many_values_at_once_are_counted_as_one_by_one(values, each):
    metrics, reference = Metrics(), Reference()
    metrics._batch_size.observe_many(values, each)
    for observed in values * each:
        reference.batch_size.observe(observed)
    [ours], [theirs] = metrics._batch_size.collect(), reference.batch_size.collect()
    given = [(sample.name, sample.labels, sample.value) for sample in ours.samples]
    expected = [s for s in theirs.samples if not s.name.endswith("_created")]
    assert [entry[:2] for entry in given] == [(sample.name, sample.labels) for sample in expected]
    assert [entry[2] for entry in given] == pytest.approx([sample.value for sample in expected])


def test_what_a_process_counts_in_shared_memory_is_read_by_another():
    memory = mmap.mmap(-1, SIZE_BYTES)
    worker, reader = Metrics(memory), Metrics(memory)
    worker.count(BatchReport(step_count=3, answers=[([0.1], 1)]))
    worker.refused("DRAINING")
    worker.beat()
    assert reader.scrape() == worker.scrape()
    assert value(reader.scrape(), "holdfast_steps_total") == 3
    assert reader.silent_s() < 60


def test_one_scrape_adds_up_workers_and_keeps_what_the_dead_had_counted():
    base, workers = Metrics(), [Metrics(), Metrics(), Metrics()]
    for steps, worker in enumerate(workers, 1):
        worker.count(BatchReport(step_count=steps, answers=[([0.001] * steps, 1)]))
        worker.store_up.set(1)
        worker.workers.set(1)
    base.restarts.inc(1)
    before = scrape_together(base, workers, Metrics())
    base.absorb(workers.pop())
    after = scrape_together(base, workers, Metrics())
    for text in (before, after):
        assert value(text, "holdfast_steps_total") == value(text, "holdfast_chunk_seconds_count") == 6
        assert value(text, "holdfast_worker_restarts_total") == 1
        assert value(text, "holdfast_store_up") == 1
    assert [value(text, "holdfast_workers") for text in (before, after)] == [3, 2]


def test_a_sum_of_times_does_not_fall_when_it_is_added_in_another_order():
    base, workers, scraped = Metrics(), [Metrics(), Metrics()], Metrics()
    for metrics, queue_s in zip((base, *workers), (0.2, 0.1, 0.3), strict=True):
        metrics.count(BatchReport(waits=[([queue_s], 1)]))
    name = "holdfast_queue_seconds_sum"
    before = value(scrape_together(base, workers, scraped), name)
    base.absorb(workers.pop())
    assert 0.2 + 0.3 + 0.1 < before == 0.2 + 0.1 + 0.3
    assert value(scrape_together(base, workers, scraped), name) == before


def test_the_store_is_up_if_it_is_for_every_worker_that_serves():
    serving, blind, starting = Metrics(), Metrics(), Metrics()
    serving.workers.set(1)
    serving.store_up.set(1)
    blind.workers.set(1)
    assert value(scrape_together(Metrics(), [serving, starting], Metrics()), "holdfast_store_up") == 1
    assert value(scrape_together(Metrics(), [serving, blind], Metrics()), "holdfast_store_up") == 0
    assert value(scrape_together(Metrics(), [], Metrics()), "holdfast_store_up") == 0


def test_the_page_in_the_docs_is_fresh():
    assert (ROOT / "docs" / "operate" / "metrics.md").read_text() == to_markdown()


def test_the_models_of_several_processes_are_shown_as_one():
    first, second = Metrics(), Metrics()
    for one, version in ((first, "1"), (second, "2")):
        one.workers.set(1)
        one.serves({ServedModel("m", version, "f")})
    text = scrape_together(Metrics(), [first, second], Metrics()).decode()
    assert all(f'holdfast_model_info{{fingerprint="f",model="m",version="{n}"}} 1.0' in text for n in "12")


def test_more_models_than_there_is_room_for_leave_some_out():
    metrics = Metrics()
    metrics.serves({ServedModel("m" * 100, str(number), "f" * 64) for number in range(1000)})
    assert 50 < len(metrics.models()) < 1000


def test_the_time_of_a_process_that_is_gone_stays_counted():
    base, worker = Metrics(), Metrics()
    worker.beat()
    base.absorb(worker)
    base.beat()
    assert value(base.scrape(), "process_cpu_seconds_total") >= 1.5 * value(
        worker.scrape(), "process_cpu_seconds_total"
    )
