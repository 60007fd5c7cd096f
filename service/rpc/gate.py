"""The gate before the rpcs: a call comes to its handler with its caller, or is refused unread.

gRPC asks for the handler of a call when its metadata has come, before its message is awaited. So a caller
without a valid token costs a hash, and holds nothing here: neither a message nor a stream.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import grpc

from holdfast.errors import ServiceError
from service.rpc.access import Access
from service.rpc.call import REQUEST_ID
from service.rpc.credentials import ANYBODY, Caller, Scope
from service.rpc.status import code_of, message_of, to_trailers
from service.rpc.tasks import end_within
from service.telemetry.rpc_metrics import RpcMetrics

MAX_STATUS_WAIT_S = 30.0
"""So long a status waits for a client that reads nothing."""

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


class Gate(grpc.GenericRpcHandler):
    """Gives the handlers of a service's rpcs to those who may call them.

    Args:
        service: Full name.
        rpcs: By name.
        access: Says who calls.
        on_refused: Told the reason of each refusal.
    """

    def __init__(
        self, service: str, rpcs: Mapping[str, Rpc], access: Access, on_refused: Callable[[str], None]
    ) -> None:
        self._rpcs = {f"/{service}/{name}": rpc for name, rpc in rpcs.items()}
        self._open = {path: rpc.build(lambda _: ANYBODY) for path, rpc in self._rpcs.items()}
        self._access = access
        self._on_refused = on_refused

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Returns the handler of a call; None if it is for another service."""
        path = handler_call_details.method
        if self._access.is_open:
            return self._open.get(path)
        rpc = self._rpcs.get(path)
        if rpc is None:
            return None
        try:
            caller = self._access.of_metadata(handler_call_details.invocation_metadata)
            if caller is None:
                return rpc.build(lambda context: self._by_certificate(context, rpc.scopes))
            caller.need(*rpc.scopes)
        except ServiceError as error:
            self._on_refused(error.reason)
            if rpc.metrics is not None:
                rpc.metrics.refused(code_of(error).value[0])
            return _refusal(error)
        return rpc.build(lambda _: caller)

    def _by_certificate(self, context: Any, scopes: tuple[Scope, ...]) -> Caller:
        try:
            caller = self._access.of_connection(context)
            caller.need(*scopes)
        except ServiceError as error:
            self._on_refused(error.reason)
            raise
        return caller


async def abort(context: Any, error: ServiceError, request_id: str = "") -> NoReturn:
    """Ends a call with an error, its details and its id in logs; raises what grpc.aio raises then."""
    trailers = to_trailers(error)
    if request_id:
        trailers = (*trailers, (REQUEST_ID, request_id))
    end_within(MAX_STATUS_WAIT_S)
    await context.abort(code_of(error), message_of(error), trailers)
    raise AssertionError("bug: an aborted call goes on")


def _refusal(error: ServiceError) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns a handler that refuses unread: that of a stream, which need not read, whatever the rpc is."""

    async def refuse(_: Any, context: Any) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
