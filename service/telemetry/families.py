"""Families of metrics whose numbers lie in an array of float64, as collectors of prometheus_client."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Numbers = memoryview
"""A part of the array, of float64."""

SECONDS = (
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 51.2e-3,
    0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4,
)  # fmt: skip
"""Upper bounds of a histogram of times."""

_LOADED, _REFUSED = range(2)


class CounterFamily(Collector):
    """A counter without labels.

    Attributes:
        numbers: The count.
    """

    def __init__(self, name: str, text: str, numbers: "Numbers[float]") -> None:
        self._name = name
        self._text = text
        self.numbers = numbers

    def inc(self, amount: float = 1) -> None:
        """Counts."""
        self.numbers[0] += amount

    def collect(self) -> Iterator[Metric]:
        """Yields the family."""
        yield CounterMetricFamily(self._name, self._text, value=self.numbers[0])


class LabelledFamily(Collector):
    """A counter with one label of few values, each of them there from the start.

    Attributes:
        numbers: The count of each value.
    """

    def __init__(
        self, name: str, text: str, label: str, values: Sequence[str], numbers: "Numbers[float]"
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._values = values
        self.numbers = numbers

    def inc(self, index: int, amount: float = 1) -> None:
        """Counts, by the number of the value."""
        self.numbers[index] += amount

    def collect(self) -> Iterator[Metric]:
        """Yields the family."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in zip(self._values, self.numbers, strict=True):
            family.add_metric([value], number)
        yield family


class GaugeFamily(Collector):
    """A gauge without labels.

    Args:
        name: Of the family.
        text: Its help.
        numbers: One.
        joins: Makes one value of those of several processes.
    """

    def __init__(
        self,
        name: str,
        text: str,
        numbers: "Numbers[float]",
        joins: Callable[[Sequence[float]], float] = sum,
    ) -> None:
        self._name = name
        self._text = text
        self._numbers = numbers
        self.joins = joins

    @property
    def value(self) -> float:
        """What it stands at."""
        return self._numbers[0]

    def set(self, value: float) -> None:
        """Replaces the value."""
        self._numbers[0] = value

    def collect(self) -> Iterator[Metric]:
        """Yields the family."""
        yield GaugeMetricFamily(self._name, self._text, value=self._numbers[0])


class Buckets:
    """The numbers of one histogram, which takes a whole batch of values at once.

    Args:
        bounds: Upper bounds, without infinity.
        numbers: One for each bound, one beyond, and the sum.
    """

    def __init__(self, bounds: tuple[float, ...], numbers: "Numbers[float]") -> None:
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

    def pairs(self) -> list[tuple[str, float]]:
        """Returns the bounds as text, with what lies at or below each."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum[0]


class HistogramFamily(Buckets, Collector):
    """A histogram without labels."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], numbers: "Numbers[float]") -> None:
        super().__init__(bounds, numbers)
        self._name = name
        self._text = text

    def collect(self) -> Iterator[Metric]:
        """Yields the family."""
        yield HistogramMetricFamily(self._name, self._text, buckets=self.pairs(), sum_value=self.sum)


class InfoFamily(Collector):
    """A gauge that is 1 for each of some sets of labels.

    Args:
        name: Of the family.
        text: Its help.
        labels: Names.
        read: Gives the values, one sequence for each series.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Sequence[Sequence[str]]]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yields the family."""
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values in self._read():
            family.add_metric(values, 1)
        yield family


class ModelLoads:
    """Counts what becomes of model files. Implements `ModelObserver`."""

    def __init__(self, loads: LabelledFamily, refused: GaugeFamily) -> None:
        self._loads = loads
        self._refused = refused

    def loaded(self) -> None:
        """See `ModelObserver`."""
        self._loads.inc(_LOADED)

    def refused(self) -> None:
        """See `ModelObserver`."""
        self._loads.inc(_REFUSED)

    def stand_refused(self, count: int) -> None:
        """See `ModelObserver`."""
        self._refused.set(count)
