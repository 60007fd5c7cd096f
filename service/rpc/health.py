"""Health, the rpcs that are open to callers without a credential; bounded apart from everything else.

The servicer that comes with gRPC tells its watchers one after the other and waits for each, so that one
which does not read stops whoever says how the service is.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from holdfast.errors import ServiceError
from service.engine.admission import Admission, Bounds
from service.rpc.call import Call
from service.rpc.codec import parse
from service.rpc.ending import end_within
from service.rpc.gate import Identify, Rpc
from service.rpc.open_calls import OpenCalls
from service.rpc.status import abort

NAME = health.SERVICE_NAME

MAX_CALLS = 1024
MAX_BYTES = 64 << 20
"""What callers of health have at most, of Check and of Watch each: calls under way, bytes as counted."""

_PLACES = 16
Status = health_pb2.HealthCheckResponse


class Health:
    """How each service is, and who watches.

    Args:
        on_refused: Told the reason of each refusal.
        max_call_s: Longest wait for the message of a call.
        max_stall_s: Longest wait for a reply to be read.
    """

    def __init__(self, on_refused: Callable[[str], None], *, max_call_s: float, max_stall_s: float) -> None:
        bounds = Bounds(chunks=MAX_CALLS, size_bytes=MAX_BYTES, share=1.0)
        self._checks, self._watches = (
            OpenCalls(
                Admission(bounds, on_refused),
                max_call_s=max_call_s,
                max_stall_s=max_stall_s,
                max_age_s=0,
                places=_PLACES,
            )
            for _ in range(2)
        )
        self._statuses: dict[str, Any] = {"": Status.SERVING}
        self._is_final = False
        self._changed = asyncio.Event()

    def set(self, service: str, status: Any) -> None:
        """Says how a service is, and lets watchers know."""
        if not self._is_final and self._statuses.get(service) != status:
            self._statuses[service] = status
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """Says that no service serves, for good."""
        for service in list(self._statuses):
            self.set(service, Status.NOT_SERVING)
        self._is_final = True

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the rpcs, each call of which is counted before its message has come."""
        return {"Check": Rpc((), self._build_check), "Watch": Rpc((), self._build_watch)}

    def _build_check(self, _: Identify) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.stream_unary_rpc_method_handler(self._check)

    def _build_watch(self, _: Identify) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.stream_stream_rpc_method_handler(self._watch)

    def sweep(self, now_s: float) -> None:
        """Ends calls whose time has come; called every now and then."""
        self._checks.sweep(now_s)
        self._watches.sweep(now_s)

    async def _check(self, _: Any, context: Any) -> bytes:
        service = await self._begin(self._checks, context)
        end_within(self._checks.max_stall_s)
        if service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _reply(self._statuses[service])

    async def _watch(self, _: Any, context: Any) -> None:
        service = await self._begin(self._watches, context)
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, Status.SERVICE_UNKNOWN)
            if status == told:
                await changed.wait()
                continue
            end_within(self._watches.max_stall_s)
            await context.write(_reply(status))
            end_within(math.inf)
            told = status

    async def _begin(self, calls: OpenCalls, context: Any) -> str:
        """Returns the service that a call names, once it is let in."""
        try:
            raw = await calls.receive(Call("", context))  # in no log
            request = parse(health_pb2.HealthCheckRequest, raw)
        except ServiceError as error:
            await abort(context, error)
        service: str = request.service
        return service


def _reply(status: Any) -> bytes:
    serialized: bytes = Status(status=status).SerializeToString()
    return serialized
