"""What gRPC servers count of their rpcs, by the names that dashboards for them expect.

The names, labels and spelling of codes are those of go-grpc-middleware's `providers/prometheus`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from holdfast.oip.v2 import oip_pb2 as oip
from holdfast.v1 import holdfast_pb2 as pb
from service.telemetry.families import SECONDS, Buckets, Numbers

CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
    "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
    "Internal", "Unavailable", "DataLoss", "Unauthenticated",
)  # fmt: skip
"""By number."""

OPEN_INFERENCE_NAME = "inference.GRPCInferenceService"
"""The name under which the service of `holdfast.oip.v2` is served."""

OK, _CANCELLED, _DEADLINE_EXCEEDED = 0, 1, 4
_STARTED, _RECEIVED, _SENT = range(3)
_HANDLED = slice(3, 3 + len(CODES))
NUMBER_COUNT = 3 + len(CODES) + len(SECONDS) + 2
"""Float64s that one rpc takes."""


class RpcMetrics:
    """Of one rpc.

    Args:
        labels: Type, service, method.
        numbers: NUMBER_COUNT of them.
    """

    def __init__(self, labels: tuple[str, str, str], numbers: "Numbers[float]") -> None:
        self.labels = labels
        self._counts = numbers[:3]
        self._handled = numbers[_HANDLED]
        self.seconds = Buckets(SECONDS, numbers[_HANDLED.stop :])

    def started(self) -> None:
        """A call has begun."""
        self._counts[_STARTED] += 1

    def received(self) -> None:
        """A message was read."""
        self._counts[_RECEIVED] += 1

    def sent(self) -> None:
        """A message was written."""
        self._counts[_SENT] += 1

    def handled(self, code: int, handling_s: float) -> None:
        """A call has ended with this code."""
        self._handled[code] += 1
        self.seconds.observe(handling_s)

    def refused(self, code: int) -> None:
        """A call was refused before anything of it was read."""
        self.started()
        self.handled(code, 0.0)

    @property
    def is_used(self) -> bool:
        """Whether it was ever called."""
        return self._counts[_STARTED] > 0

    def counts(self) -> Sequence[float]:
        """Returns calls started, messages received and sent."""
        return self._counts

    def by_code(self) -> Iterator[tuple[str, float]]:
        """Yields calls ended: OK always, another code from its first time on."""
        for code, number in zip(CODES, self._handled, strict=True):
            if number or code == CODES[OK]:
                yield code, number


class RpcFamilies(Collector):
    """The families of all rpcs; an rpc that nobody has called has its counts, and no histogram."""

    _LABELS = ("grpc_type", "grpc_service", "grpc_method")
    _COUNTS = (
        ("grpc_server_started", "Rpcs started."),
        ("grpc_server_msg_received", "Messages received by rpcs."),
        ("grpc_server_msg_sent", "Messages sent by rpcs."),
    )

    def __init__(self, rpcs: Sequence[RpcMetrics]) -> None:
        self._rpcs = rpcs

    def collect(self) -> Iterator[Metric]:
        """Yields the families."""
        for index, (name, text) in enumerate(self._COUNTS):
            family = CounterMetricFamily(name, text, labels=self._LABELS)
            for rpc in self._rpcs:
                family.add_metric(rpc.labels, rpc.counts()[index])
            yield family
        handled = CounterMetricFamily(
            "grpc_server_handled", "Rpcs that ended, by code.", labels=(*self._LABELS, "grpc_code")
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "Duration of an rpc, including streams.", labels=self._LABELS
        )
        for rpc in self._rpcs:
            for code, number in rpc.by_code():
                handled.add_metric((*rpc.labels, code), number)
            if rpc.is_used:
                seconds.add_metric(rpc.labels, buckets=rpc.seconds.pairs(), sum_value=rpc.seconds.sum)
        yield handled
        yield seconds


def rpc_labels() -> Iterator[tuple[str, str, str]]:
    """Yields type, service and method of every rpc of holdfast.v1 and of the Open Inference Protocol.

    No two methods have the same name.
    """
    own = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
    other = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for service, name in ((own, own.full_name), (other, OPEN_INFERENCE_NAME)):
        for method in service.methods:
            kind = {
                (False, False): "unary",
                (True, False): "client_stream",
                (False, True): "server_stream",
                (True, True): "bidi_stream",
            }[method.client_streaming, method.server_streaming]
            yield kind, name, method.name


def code_of(context: Any) -> int:
    """Returns the number of the code with which a call ends that was refused, given up, or ran out of time.

    Args:
        context: Of the call, of grpc.aio.
    """
    said = context.code()  # 0 until `abort` puts a grpc.StatusCode there
    if said:
        code: int = said.value[0]
        return code
    left_s: float | None = context.time_remaining()
    return _DEADLINE_EXCEEDED if left_s is not None and left_s <= 0 else _CANCELLED
