"""Writes docs/operate/metrics.md, from the metrics themselves: `python -m service.telemetry.reference`."""

from service.telemetry.metrics import Metrics, ServedModel

HEAD = """# Metrics

What `/metrics` on the HTTP address shows, in Prometheus' text format; one scrape covers all workers, and
counts outlive a worker that is killed. Made by `python -m service.telemetry.reference`.

Labels take values from closed sets: neither sessions nor tenants nor requests add a series. The rpcs of
`holdfast.v1` are counted by the names of go-grpc's middleware, so dashboards for those work; health and
reflection are not counted. A chunk that fails on a stream does not end the stream: `holdfast_errors_total`
counts chunks, `grpc_server_handled_total` calls. Of a session in memory nothing is read, so the share of
chunks that found their session there is `1 - rate(holdfast_loaded_sessions_total[5m]) /
rate(holdfast_chunks_total[5m])`.

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
