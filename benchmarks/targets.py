"""The ratios asked for, from the medians of one run. Pure."""

from benchmarks.results import (
    CLIENT,
    ECHO,
    HOLDFAST,
    ONE_COMMIT,
    ONE_RUN,
    ONNXRUNTIME,
    PLAIN,
    STORE,
    TRITON,
    TRITON_CLIENT,
    Results,
)
from benchmarks.section import Ratio

_U64, _U256, _S64, _S256 = "64 callers", "256 callers", "64 streams", "256 streams"
_ROWS, _CHUNKS = "256 rows x 1", "64 rows x 16"


def goals(results: Results) -> list[Ratio]:
    """Judges a run by the project's goals, as far as turns measure them."""
    of = results.median
    triton_unary = best(results, (_U64, _U256))
    triton_streams = best(results, (_S64, _S256))
    triton_best = best(results, (_U64, _U256, _S64, _S256))
    plain_best = highest(of(_U64, PLAIN), of(_U256, PLAIN))
    one_each_ms = total(
        of("1 stream", ECHO, "p50_ms"), of(ONE_RUN, ONNXRUNTIME, "p50_ms"), of(ONE_COMMIT, STORE, "p50_ms")
    )
    return [
        over(
            "64 callers of session.step over the unary no-op echo: steps/s",
            of(_U64, CLIENT),
            of(_U64, ECHO),
            at_least=4.5,
        ),
        over(
            "64 callers of session.step over Triton's unary at its best: steps/s",
            of(_U64, CLIENT),
            triton_unary,
            at_least=3,
        ),
        over(
            "256 callers of session.step over plain's unary at its best: steps/s",
            of(_U256, CLIENT),
            plain_best,
            at_least=18,
        ),
        over(
            "256 callers of session.step over Triton's best, unary or streams: steps/s",
            of(_U256, CLIENT),
            triton_best,
            at_least=4.5,
        ),
        over(
            "1,024 callers of session.step over messages of 256 rows: steps/s",
            of("1,024 callers", CLIENT),
            of(_ROWS, HOLDFAST),
            at_least=0.7,
        ),
        over(
            "64 callers of session.step over 64 of Triton's unary: p99",
            of(_U64, CLIENT, "p99_ms"),
            of(_U64, TRITON, "p99_ms"),
            at_most=0.4,
        ),
        over(
            "1 caller of session.step over one token on a stream: p50",
            of("1 caller", CLIENT, "p50_ms"),
            of("1 stream", HOLDFAST, "p50_ms"),
            at_most=1.05,
        ),
        over(
            "64 plain unary callers over the echo: server CPU per step",
            of(_U64, HOLDFAST, "server_us"),
            of(_U64, ECHO, "server_us"),
            at_most=1.2,
        ),
        over(
            "64 session.streams over Triton's streams at their best: steps/s",
            of(_S64, CLIENT),
            triton_streams,
            at_least=1.3,
        ),
        over(
            "messages of 256 rows x 1 over onnxruntime on 256 rows alone: CPU per row",
            of(_ROWS, HOLDFAST, "server_us"),
            of(_ROWS, ONNXRUNTIME, "server_us"),
            at_most=1.7,
        ),
        over(
            "1 stream over echo + one run + one commit, each on an idle machine: p50",
            of("1 stream", HOLDFAST, "p50_ms"),
            one_each_ms,
            at_most=1.5,
        ),
    ]


def ratios(results: Results) -> list[Ratio]:
    """Compares plain gRPC callers, without the client."""
    of = results.median
    triton_best = best(results, (_U64, _U256, _S64, _S256))
    return [
        over("64 streams: steps/s over the echo's", of(_S64, HOLDFAST), of(_S64, ECHO), at_least=0.9),
        over(
            "64 streams: server CPU per step over the echo's",
            of(_S64, HOLDFAST, "server_us"),
            of(_S64, ECHO, "server_us"),
            at_most=1.4,
        ),
        over(
            "batches of 256 rows x 1: steps/s over onnxruntime alone",
            of(_ROWS, HOLDFAST),
            of(_ROWS, ONNXRUNTIME),
            at_least=0.6,
        ),
        over(
            "batches of 64 rows x 16: steps/s over onnxruntime alone",
            of(_CHUNKS, HOLDFAST),
            of(_CHUNKS, ONNXRUNTIME),
            at_least=0.7,
        ),
        over("64 streams: steps/s over Triton's", of(_S64, HOLDFAST), of(_S64, TRITON)),
        over(
            "64 streams: p99 over Triton's",
            of(_S64, HOLDFAST, "p99_ms"),
            of(_S64, TRITON, "p99_ms"),
            at_most=0.75,
        ),
        over("64 unary callers: steps/s over Triton's", of(_U64, HOLDFAST), of(_U64, TRITON)),
        over("256 unary callers: steps/s over plain's", of(_U256, HOLDFAST), of(_U256, PLAIN)),
        over(
            "batches of 64 rows x 16: steps/s over Triton's best",
            of(_CHUNKS, HOLDFAST),
            triton_best,
            at_least=12,
        ),
        over("batches of 256 rows x 1: steps/s over Triton's best", of(_ROWS, HOLDFAST), triton_best),
    ]


def best(results: Results, loads: tuple[str, ...]) -> float | None:
    """Returns the most steps per second that Triton had under one of the loads, however it was called."""
    return highest(*(results.median(load, name) for load in loads for name in (TRITON, TRITON_CLIENT)))


def highest(*values: float | None) -> float | None:
    """Returns the largest; None if all are missing."""
    return max((value for value in values if value is not None), default=None)


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
