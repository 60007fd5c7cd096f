"""The histogram that takes batches, beside the one of prometheus_client."""

from prometheus_client import CollectorRegistry, Histogram

from service.metrics import Metrics


def buckets(registry, name):
    return {
        (sample.name, sample.labels.get("le")): sample.value
        for family in registry.collect()
        if family.name == name
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_it_counts_as_the_histogram_of_prometheus_client_does():
    metrics, registry = Metrics(), CollectorRegistry()
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    expected = Histogram("holdfast_batch_size", "Chunks run together.", buckets=sizes, registry=registry)
    for size in (1, 2, 3, 64, 65, 256, 1000):
        metrics.ran(size, size, 0.001)
        expected.observe(size)
    assert buckets(metrics.registry, "holdfast_batch_size") == buckets(registry, "holdfast_batch_size")
