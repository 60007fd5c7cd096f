"""The gate before the rpcs: a call comes to its handler with its caller, or is refused unread.

gRPC asks for the handler of a call when its metadata has come, before its message is awaited. So a caller
without a valid token costs a hash, and holds nothing here: neither a message nor a stream.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grpc

from holdfast.errors import ServiceError
from service.rpc.access import Access
from service.rpc.credentials import ANYBODY, Caller, Scope
from service.rpc.status import abort, code_of
from service.telemetry.rpc_metrics import RpcMetrics

Identify = Callable[[Any], Caller]
"""Given the context of a call, says who calls; raises ServiceError."""


class Rpc(NamedTuple):
    """What is behind the gate.

    Attributes:
        scopes: A caller needs one of them.
        build: Makes the handler of one call.
        metrics: Counts those refused here, where the rpc is counted.
    """

    scopes: tuple[Scope, ...]
    build: "Callable[[Identify], grpc.RpcMethodHandler[Any, Any]]"
    metrics: RpcMetrics | None = None


class Gate:
    """Gives the handlers of rpcs to those who may call them.

    Args:
        on_refused: Told the reason of each refusal.

    Attributes:
        services: Names of the rpcs of each, by its full name.
    """

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        self.services: dict[str, tuple[str, ...]] = {}
        self._open: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._closed: dict[str, tuple[Rpc, Access]] = {}
        self._on_refused = on_refused

    def add(self, service: str, rpcs: Mapping[str, Rpc], access: Access) -> None:
        """Adds a service.

        Args:
            service: Full name.
            rpcs: By name.
            access: Says who calls.
        """
        self.services[service] = tuple(rpcs)
        for name, rpc in rpcs.items():
            if access.is_open:
                self._open[f"/{service}/{name}"] = rpc.build(_anybody)
            else:
                self._closed[f"/{service}/{name}"] = rpc, access

    def resolve_handler(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Returns the handler of a call; None where there is none. gRPC calls it so."""
        handler = self._open.get(details.method)
        if handler is not None or details.method not in self._closed:
            return handler
        rpc, access = self._closed[details.method]
        try:
            caller = access.of_metadata(details.invocation_metadata)
            if caller is None:
                return rpc.build(lambda context: self._by_certificate(context, access, rpc.scopes))
            caller.need(*rpc.scopes)
        except ServiceError as error:
            self._on_refused(error.reason)
            if rpc.metrics is not None:
                rpc.metrics.refused(code_of(error).value[0])
            return _refusal(error)
        return rpc.build(lambda _: caller)

    def _by_certificate(self, context: Any, access: Access, scopes: tuple[Scope, ...]) -> Caller:
        try:
            caller = access.of_connection(context)
            caller.need(*scopes)
        except ServiceError as error:
            self._on_refused(error.reason)
            raise
        return caller


def _anybody(_: Any) -> Caller:
    return ANYBODY


def _refusal(error: ServiceError) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns a handler that refuses unread: that of a stream, which need not read, whatever the rpc is."""

    async def refuse(_: Any, context: Any) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
