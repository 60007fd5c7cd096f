"""Counts the requests of the Open Inference Protocol, by model, in this process."""

import time

from holdfast.oip.v2 import oip_pb2 as oip
from service.model.protocol import Model


class _Counts:
    """Of one model."""

    def __init__(self) -> None:
        self.succeeded = self.failed = 0
        self.succeeded_ns = self.failed_ns = 0
        self.last_ms = 0


class Statistics:
    """What became of requests whose model is served."""

    def __init__(self) -> None:
        self._counts: dict[Model, _Counts] = {}

    def count(self, model: Model, took_s: float, *, succeeded: bool) -> None:
        """Counts a request.

        Args:
            model: That it was for.
            took_s: From when it was read to its reply.
            succeeded: Whether its tokens are applied.
        """
        counts = self._counts.setdefault(model, _Counts())
        took_ns = round(took_s * 1e9)
        if succeeded:
            counts.succeeded += 1
            counts.succeeded_ns += took_ns
            counts.last_ms = time.time_ns() // 10**6
        else:
            counts.failed += 1
            counts.failed_ns += took_ns

    def message(self, model: Model) -> oip.ModelStatistics:
        """Returns the counts of a model."""
        counts = self._counts.get(model) or _Counts()
        return oip.ModelStatistics(
            name=model.name,
            version=str(model.version),
            last_inference=counts.last_ms,
            inference_count=counts.succeeded,
            inference_stats=oip.InferStatistics(
                success=oip.StatisticDuration(count=counts.succeeded, ns=counts.succeeded_ns),
                fail=oip.StatisticDuration(count=counts.failed, ns=counts.failed_ns),
            ),
        )
