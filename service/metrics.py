"""Every metric of the server, once. The only place that knows prometheus_client."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 51.2e-3,
    0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4,
)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Histogram(Collector):
    """A histogram that takes a whole batch of values at once; one by one they cost a tenth of a step."""

    def __init__(
        self, name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: Sequence[float], each: int = 1) -> None:
        """Counts values, each of them `each` times, in the first bucket whose upper bound is not below."""
        counts, buckets = self._counts, self._buckets
        for value in values:
            counts[bisect_left(buckets, value)] += each
        self._sum += each * sum(values)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yields the one family; for the registry."""
        bounds = [*map(floatToGoString, self._buckets), "+Inf"]
        pairs = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=pairs, sum_value=self._sum)


class Metrics:
    """Implements the engine's `Observer`; `scrape` gives the text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._steps = self._counter("steps", "Steps committed: tokens applied.")
        self._chunks = self._counter("chunks", "Chunks committed.")
        self._replays = self._counter("replays", "Chunks answered from the record.")
        self._conflicts = self._counter("conflicts", "Commits that found another record than expected.")
        self._errors = Counter(
            "holdfast_errors", "Chunks answered with an error.", ["reason"], registry=self.registry
        )
        self._batch_size = self._histogram("batch_size", "Chunks run together.", _SIZES)
        self._queue_s = self._histogram("queue_seconds", "Wait of a chunk before it runs.")
        self._load_s = self._histogram("state_load_seconds", "One read of cold states.")
        self._run_s = self._histogram("run_seconds", "One batch through the model.")
        self._commit_s = self._histogram("commit_seconds", "One commit of a batch.")
        self._chunk_s = self._histogram("chunk_seconds", "A chunk from arrival to answer.")
        self.store_up = Gauge("holdfast_store_up", "1 while the store answers.", registry=self.registry)

    def scrape(self) -> bytes:
        """Returns all metrics in the text format."""
        return generate_latest(self.registry)

    def loaded(self, session_count: int, load_s: float) -> None:
        """See `Observer`."""
        self._load_s.observe((load_s,))

    def ran(self, chunk_count: int, step_count: int, run_s: float) -> None:
        """See `Observer`."""
        self._batch_size.observe((chunk_count,))
        self._run_s.observe((run_s,))

    def committed(self, chunk_count: int, commit_s: float) -> None:
        """See `Observer`."""
        self._commit_s.observe((commit_s,))

    def waited(self, queue_s: Sequence[float], each: int) -> None:
        """See `Observer`."""
        self._queue_s.observe(queue_s, each)

    def applied(self, step_count: int, total_s: Sequence[float], each: int) -> None:
        """See `Observer`."""
        self._steps.inc(step_count)
        self._chunks.inc(each * len(total_s))
        self._chunk_s.observe(total_s, each)

    def replayed(self) -> None:
        """See `Observer`."""
        self._replays.inc()

    def conflicted(self) -> None:
        """See `Observer`."""
        self._conflicts.inc()

    def refused(self, reason: str) -> None:
        """See `Observer`."""
        self._errors.labels(reason).inc()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"holdfast_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> _Histogram:
        return _Histogram(f"holdfast_{name}", text, buckets, self.registry)
