"""What /metrics says of one load: the differences of its sums and counts."""

import urllib.request
from collections.abc import Mapping

Samples = Mapping[str, float]

TIMEOUT_S = 5.0


def scrape(http: str) -> dict[str, float]:
    """Reads the samples without labels of HOST:PORT/metrics, by name.

    Raises:
        OSError: No such page there.
    """
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=TIMEOUT_S) as page:
        return parse(page.read().decode())


def parse(text: str) -> dict[str, float]:
    """Reads the text format of Prometheus; samples with labels are left out."""
    lines = (line.split() for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value, *_ in lines}


def mean(before: Samples, after: Samples, histogram: str) -> float | None:
    """Returns the mean of what a histogram saw between two scrapes; None if it saw nothing."""
    count = _difference(before, after, f"{histogram}_count")
    return _difference(before, after, f"{histogram}_sum") / count if count else None


def _difference(before: Samples, after: Samples, name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)
