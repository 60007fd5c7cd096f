"""Every metric of the server, once. The only place that knows prometheus_client.

The numbers of a process are one array of float64, in memory that it may share: what a worker has counted
can be read while it runs and after it was killed. An array has one writer, in one thread; an aligned
float64 is written whole, so a reader finds each number as it was at some moment, never half of it.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from mmap import mmap

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.engine.admission import Held
from service.errors import ServiceError
from service.store.protocol import ACK_LEVELS, AckLevel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SIZE_BYTES = 8192
"""Of the array; seven times what is used."""

STALLED_AFTER_S = 10.0
"""An event loop that has not turned for so long is stuck."""

_SECONDS = (
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 51.2e-3,
    0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4,
)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REASONS = sorted(kind.reason for kind in ServiceError.__subclasses__())
_REASON_INDEX = {reason: index for index, reason in enumerate(_REASONS)}


class Metrics:
    """Implements the engine's `Observer`; `scrape` gives the text.

    Args:
        memory: SIZE_BYTES for the numbers, zeros or what another process counts there; by default its own.

    Attributes:
        registry: Of prometheus_client; collects from the numbers.
        restarts: Counter of workers started again.
        tasks: Gauge of the tasks of the event loop.
        store_up: Gauge, 1 while the store answers.
        store_safe: Gauge, 1 while its settings and its disk are such that it keeps sessions.
        workers: Gauge of processes that serve; a process sets its own to 1.
        streams, waiting_chunks, waiting_bytes: Gauges of what is held, see `holds`.
    """

    def __init__(self, memory: mmap | None = None) -> None:
        self.registry = CollectorRegistry()
        self._numbers = memoryview(bytearray(SIZE_BYTES) if memory is None else memory).cast("d")
        self._taken = 0
        self._steps = self._counter("steps", "Steps committed: tokens applied.")
        self._chunks = self._counter("chunks", "Chunks committed.")
        self._replays = self._counter("replays", "Chunks answered from the record.")
        self._conflicts = self._counter("conflicts", "Commits that found another record than expected.")
        text = "Chunks answered with an error, and calls refused for who makes them."
        self._errors = self._labelled("errors", text, "reason", _REASONS)
        self._batch_size = self._histogram("batch_size", "Chunks run together.", _SIZES)
        self._queue_s = self._histogram("queue_seconds", "Wait of a chunk before it runs.")
        self._load_s = self._histogram("state_load_seconds", "One read of cold states.")
        self._run_s = self._histogram("run_seconds", "One batch through the model.")
        self._commit_s = self._histogram("commit_seconds", "One commit of a batch.")
        self._chunk_s = self._histogram("chunk_seconds", "A chunk from arrival to answer.")
        self._acknowledged = self._labelled(
            "acknowledged_chunks",
            "Chunks answered, replays included, by the level reached.",
            "level",
            [str(level) for level in ACK_LEVELS],
        )
        self._reruns = self._counter("reruns", "Parts of a batch that failed, run again.")
        self._halts = self._counter("halted_runs", "Runs of a model ended because they took too long.")
        self._quarantines = self._counter("quarantines", "Sessions put into quarantine.")
        self.restarts = self._counter("worker_restarts", "Workers started again after one ended.")
        self._counted = self._taken  # what follows is about now and is not added up
        self.store_up = self._gauge("store_up", "1 while the store answers.")
        self.store_safe = self._gauge(
            "store_safe", "1 while the store is known to keep what it acknowledges."
        )
        self.workers = self._gauge("workers", "Processes that serve.")
        self.streams = self._gauge("streams", "Open streams.")
        self.waiting_chunks = self._gauge("waiting_chunks", "Chunks taken and not answered.")
        self.waiting_bytes = self._gauge("waiting_bytes", "Bytes of these, and of replies not written.")
        self.tasks = self._gauge("tasks", "Tasks of the event loop, looked at every few seconds.")
        self._beat_s = self._take(1)

    def scrape(self) -> bytes:
        """Returns all metrics in the text format."""
        return generate_latest(self.registry)

    def absorb(self, other: "Metrics") -> None:
        """Adds what another has counted; not its gauges."""
        numbers, added = self._numbers, other._numbers  # noqa: SLF001 -- its own class
        for index in range(self._counted):
            numbers[index] += added[index]

    def beat(self) -> None:
        """Notes that the event loop turns."""
        self._beat_s[0] = time.monotonic()

    def silent_s(self) -> float:
        """Returns the seconds since the last beat, in this process or another of the machine."""
        return time.monotonic() - self._beat_s[0]

    def holds(self, held: Held) -> None:
        """Shows what the process holds."""
        self.streams.set(held.streams)
        self.waiting_chunks.set(held.chunks)
        self.waiting_bytes.set(held.size_bytes)

    # -- Observer -----------------------------------------------------------------------------

    def loaded(self, session_count: int, load_s: float) -> None:
        """See `Observer`."""
        self._load_s.observe(load_s)

    def ran(self, chunk_count: int, step_count: int, run_s: float) -> None:
        """See `Observer`."""
        self._batch_size.observe(chunk_count)
        self._run_s.observe(run_s)

    def committed(self, chunk_count: int, commit_s: float) -> None:
        """See `Observer`."""
        self._commit_s.observe(commit_s)

    def waited(self, queue_s: Sequence[float], each: int = 1) -> None:
        """See `Observer`."""
        self._queue_s.observe_many(queue_s, each)

    def applied(self, step_count: int, total_s: Sequence[float], each: int = 1) -> None:
        """See `Observer`."""
        self._steps.inc(step_count)
        self._chunks.inc(each * len(total_s))
        self._chunk_s.observe_many(total_s, each)

    def acknowledged(self, ack_level: AckLevel, chunk_count: int) -> None:
        """See `Observer`."""
        self._acknowledged.inc(ack_level, chunk_count)

    def replayed(self) -> None:
        """See `Observer`."""
        self._replays.inc(1)

    def conflicted(self) -> None:
        """See `Observer`."""
        self._conflicts.inc(1)

    def refused(self, reason: str) -> None:
        """See `Observer`."""
        self._errors.inc(_REASON_INDEX[reason])

    def reran(self) -> None:
        """See `Observer`."""
        self._reruns.inc(1)

    def halted(self) -> None:
        """See `Observer`."""
        self._halts.inc(1)

    def quarantined(self) -> None:
        """See `Observer`."""
        self._quarantines.inc(1)

    # -- the array ----------------------------------------------------------------------------

    def _take(self, count: int) -> "memoryview[float]":
        start, self._taken = self._taken, self._taken + count
        assert self._taken <= len(self._numbers), "bug: SIZE_BYTES is too small"
        return self._numbers[start : self._taken]

    def _counter(self, name: str, text: str) -> "_Counter":
        counter = _Counter(f"holdfast_{name}", text, self._take(1))
        self.registry.register(counter)
        return counter

    def _labelled(self, name: str, text: str, label: str, values: Sequence[str]) -> "_Labelled":
        counter = _Labelled(f"holdfast_{name}", text, label, values, self._take(len(values)))
        self.registry.register(counter)
        return counter

    def _gauge(self, name: str, text: str) -> "_Gauge":
        gauge = _Gauge(f"holdfast_{name}", text, self._take(1))
        self.registry.register(gauge)
        return gauge

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...] = _SECONDS) -> "_Histogram":
        histogram = _Histogram(f"holdfast_{name}", text, bounds, self._take(len(bounds) + 2))
        self.registry.register(histogram)
        return histogram


def scrape_together(base: Metrics, workers: Sequence[Metrics]) -> bytes:
    """Returns the text for several processes.

    Args:
        base: What is counted beside the workers, and what workers that are gone had counted.
        workers: Those that run. The store is up if it is for each of them that serves.
    """
    total = Metrics()
    for part in (base, *workers):
        total.absorb(part)
    serving = [worker for worker in workers if worker.workers.value]
    total.workers.set(len(serving))
    total.tasks.set(sum(worker.tasks.value for worker in serving))
    total.store_up.set(min((worker.store_up.value for worker in serving), default=0))
    total.store_safe.set(min((worker.store_safe.value for worker in serving), default=0))
    total.streams.set(sum(worker.streams.value for worker in serving))
    total.waiting_chunks.set(sum(worker.waiting_chunks.value for worker in serving))
    total.waiting_bytes.set(sum(worker.waiting_bytes.value for worker in serving))
    return total.scrape()


class _Counter(Collector):
    def __init__(self, name: str, text: str, numbers: "memoryview[float]") -> None:
        self._name = name
        self._text = text
        self._numbers = numbers

    def inc(self, amount: float) -> None:
        """Counts."""
        self._numbers[0] += amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._text, value=self._numbers[0])


class _Labelled(Collector):
    """A counter with one label of few values, each of them there from the start."""

    def __init__(
        self, name: str, text: str, label: str, values: Sequence[str], numbers: "memoryview[float]"
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._values = values
        self._numbers = numbers

    def inc(self, index: int, amount: float = 1) -> None:
        """Counts, by the number of the value."""
        self._numbers[index] += amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in zip(self._values, self._numbers, strict=True):
            family.add_metric([value], number)
        yield family


class _Gauge(Collector):
    def __init__(self, name: str, text: str, numbers: "memoryview[float]") -> None:
        self._name = name
        self._text = text
        self._numbers = numbers

    @property
    def value(self) -> float:
        """What it stands at."""
        return self._numbers[0]

    def set(self, value: float) -> None:
        """Replaces the value."""
        self._numbers[0] = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._text, value=self._numbers[0])


class _Histogram(Collector):
    """A histogram that takes a whole batch of values at once; one by one they cost a tenth of a step."""

    def __init__(
        self, name: str, text: str, bounds: tuple[float, ...], numbers: "memoryview[float]"
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = numbers[:-1]
        self._sum = numbers[-1:]

    def observe_many(self, values: Sequence[float], each: int = 1) -> None:
        """Counts values, `each` times each, in the bucket whose upper bound is the first not below.

        The values of a batch share few buckets, so they are sorted and counted bucket by bucket: for 64
        values half the time of finding the bucket of each.
        """
        bounds, counts, ordered = self._bounds, self._counts, sorted(values)
        start, end = 0, len(ordered)
        while start < end:
            bucket = bisect_left(bounds, ordered[start])
            after = bisect_right(ordered, bounds[bucket], start) if bucket < len(bounds) else end
            counts[bucket] += each * (after - start)
            start = after
        self._sum[0] += each * sum(ordered)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum[0] += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        pairs = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=pairs, sum_value=self._sum[0])
