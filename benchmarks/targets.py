"""The ratios asked for, from the medians of one run. Pure."""

from benchmarks.results import (
    ECHO,
    HOLDFAST,
    ONE_COMMIT,
    ONE_COMMIT_IDLE,
    ONE_RUN,
    ONE_RUN_IDLE,
    ONNXRUNTIME,
    PLAIN,
    STORE,
    TRITON,
    TWO_WORKERS,
    Results,
)
from benchmarks.section import Ratio


def ratios(results: Results) -> list[Ratio]:
    """Judges a run."""
    of = results.median
    s64, s256, u64, u256 = "64 streams", "256 streams", "64 unary callers", "256 unary callers"
    triton_best = max((of(load, TRITON) or 0.0 for load in (s64, s256, u64)), default=0.0) or None
    echo_ms = of("1 stream", ECHO, "p50_ms")
    idle = total(echo_ms, of(ONE_RUN_IDLE, ONNXRUNTIME, "p50_ms"), of(ONE_COMMIT_IDLE, STORE, "p50_ms"))
    back_to_back = total(echo_ms, of(ONE_RUN, ONNXRUNTIME, "p50_ms"), of(ONE_COMMIT, STORE, "p50_ms"))
    return [
        over("64 streams: steps/s over the echo's", of(s64, HOLDFAST), of(s64, ECHO), at_least=0.9),
        over(
            "64 streams: server CPU per step over the echo's",
            of(s64, HOLDFAST, "server_us"),
            of(s64, ECHO, "server_us"),
            at_most=1.4,
        ),
        over(
            "batches of 256 rows x 1: steps/s over onnxruntime alone",
            of("256 rows x 1", HOLDFAST),
            of("256 rows x 1", ONNXRUNTIME),
            at_least=0.6,
        ),
        over(
            "batches of 64 rows x 16: steps/s over onnxruntime alone",
            of("64 rows x 16", HOLDFAST),
            of("64 rows x 16", ONNXRUNTIME),
            at_least=0.7,
        ),
        over(
            "1 stream: p50 over echo + one run + one commit, each on an idle machine",
            of("1 stream", HOLDFAST, "p50_ms"),
            idle,
            at_most=1.3,
        ),
        over(
            "the same, runs and commits back to back, so that caches are warm",
            of("1 stream", HOLDFAST, "p50_ms"),
            back_to_back,
        ),
        over("256 unary callers: steps/s over plain's", of(u256, HOLDFAST), of(u256, PLAIN), at_least=2),
        over(
            "256 streams: steps/s over plain's 256 unary callers",
            of(s256, HOLDFAST),
            of(u256, PLAIN),
            at_least=5.5,
        ),
        over("64 streams: steps/s over Triton's", of(s64, HOLDFAST), of(s64, TRITON), at_least=1.5),
        over(
            "64 streams: p99 over Triton's",
            of(s64, HOLDFAST, "p99_ms"),
            of(s64, TRITON, "p99_ms"),
            at_most=0.75,
        ),
        over("64 unary callers: steps/s over Triton's", of(u64, HOLDFAST), of(u64, TRITON)),
        over(
            "64 unary callers, 2 workers: steps/s over Triton's",
            of(u64, TWO_WORKERS),
            of(u64, TRITON),
        ),
        over(
            "batches of 64 rows x 16: steps/s over Triton's best",
            of("64 rows x 16", HOLDFAST),
            triton_best,
            at_least=12,
        ),
        over(
            "batches of 256 rows x 1: steps/s over Triton's best", of("256 rows x 1", HOLDFAST), triton_best
        ),
    ]


def over(
    name: str,
    numerator: float | None,
    denominator: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Ratio:
    """Divides; what is missing leaves the ratio without a value."""
    value = None if numerator is None or denominator is None else numerator / denominator
    return Ratio(name, value, at_least, at_most)


def total(*values: float | None) -> float | None:
    """Adds; None if one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
