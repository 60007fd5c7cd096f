"""Writes docs/operate/metrics.md, from the metrics themselves: `python -m service.telemetry.reference`."""

from service.telemetry.metrics import Metrics, ServedModel

HEAD = """# Metrics

`/metrics` on the HTTP address has these metrics, in Prometheus' text format. One scrape covers all workers,
and counts outlive a worker that is killed. Written by `python -m service.telemetry.reference`.

Labels take values from closed sets: neither sessions nor tenants nor requests add a series. The rpcs of
`holdfast.v1` have the metric names of go-grpc's middleware, so its dashboards work; health and reflection
are not counted. A chunk that fails on a stream does not end the stream, so `holdfast_errors_total` counts
chunks and `grpc_server_handled_total` counts calls. A session in memory is not read from the store. The
share of chunks that found their session in memory is therefore
`1 - rate(holdfast_loaded_sessions_total[5m]) / rate(holdfast_chunks_total[5m])`.

| metric | type | labels | |
|---|---|---|---|
"""


def to_markdown() -> str:
    """Returns the page."""
    metrics = Metrics()
    metrics.rpc("Step").refused(0)  # an rpc that nobody called has no histogram
    metrics.serves({ServedModel("", "", "")})
    rows = []
    for family in metrics.registry.collect():
        names = {name for sample in family.samples for name in sample.labels} - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{name}`" for name in sorted(names))
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |\n")
    return HEAD + "".join(sorted(rows))


if __name__ == "__main__":
    print(to_markdown(), end="")
