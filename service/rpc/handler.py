"""What every call goes through: caller, time limit, count, log, and an error as a status.

gRPC would read the message of a unary call before anybody is told of the call. So it is served as a call
that streams, which reads for itself: it is counted, refused and timed before its message has come.
"""

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from holdfast.errors import InternalFailure, ServiceError
from service.rpc.access import Access
from service.rpc.call import Call
from service.rpc.codec import parse
from service.rpc.gate import Identify
from service.rpc.open_calls import OpenCalls
from service.rpc.status import abort
from service.telemetry.rpc_metrics import OK, RpcMetrics, code_of

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing


class Handler:
    """Serves the calls of one rpc.

    Args:
        method: Its name.
        message_type: Of its request; None for one that streams, which reads its own.
        serve: Takes the request, where this reads it, and the call; returns the reply, a message or its
            bytes. One that streams takes the call and what counts its messages, and writes.
        calls: Knows the unary calls under way, and how long a call may take.
        access: Ends calls whose credential is revoked.
        metrics: Counts the calls.
        tracing: Makes spans of the calls, if they are traced.
    """

    def __init__(
        self,
        method: str,
        message_type: Any,
        serve: Callable[..., Awaitable[Any]],
        calls: OpenCalls,
        access: Access,
        metrics: RpcMetrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._method = method
        self._message_type = message_type
        self._function = serve
        self._calls = calls
        self._access = access
        self._metrics = metrics
        self._tracing = tracing

    def build(self, identify: Identify) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns what gRPC calls for a call of whom `identify` names."""
        # gRPC has `inspect` look at this at every call: at a function for half of what a method takes
        serve = functools.partial(Handler._serve, self, identify)
        if self._message_type is None:
            return grpc.stream_stream_rpc_method_handler(serve)
        return grpc.stream_unary_rpc_method_handler(serve)

    async def _serve(self, identify: Identify, _: Any, context: Any) -> Any:
        """Counts a call, and turns what it raises into a status; of unknown errors the text is fixed."""
        metrics, is_served = self._metrics, False
        call = Call(self._method, context)
        metrics.started()
        if self._tracing is not None:
            call.span = self._tracing.begin(self._method, context.invocation_metadata() or ())
        try:
            try:
                caller = call.caller = identify(context)
                remaining_s: float | None = context.time_remaining()
                limit_s = self._calls.max_call_s if remaining_s is None else remaining_s
                call.deadline_s = call.began_s + limit_s
                with self._access.holding(caller):
                    if self._message_type is None:
                        reply = await self._function(call, metrics)
                    else:
                        reply = await self._answer(
                            call, call.deadline_s if remaining_s is None else math.inf
                        )
            except ServiceError as error:
                refusal = error
            except asyncio.CancelledError:
                call.ended("CANCELLED")
                raise
            except grpc.aio.BaseError:  # the call has its status already, or is gone
                call.ended("ENDED")
                raise
            except Exception as error:  # noqa: BLE001 -- logged, whatever it is
                refusal = InternalFailure("the server failed on this request; its log says why")
                refusal.__cause__ = error
            else:
                call.ended("OK")
                is_served = True
                return reply
            call.reason = refusal.reason
            call.failed(refusal)
            call.ended(refusal.reason)
            await abort(context, refusal.without_trace(), call.request_id)
        finally:
            code = OK if is_served else code_of(context)
            metrics.handled(code, time.monotonic() - call.began_s)
            if call.span is not None:
                call.span.end(
                    code,
                    reason=call.reason,
                    tenant=call.caller.tenant,
                    session_id=call.session_id,
                    row_count=call.row_count,
                )

    async def _answer(self, call: Call, ends_s: float) -> bytes:
        """Reads the message of a call, and returns the reply; see `Call.ends_s`."""
        raw = await self._calls.receive(call)
        self._metrics.received()
        request = [parse(self._message_type, raw)]  # not held here while it is served
        del raw
        call.ends_s = ends_s
        try:
            reply = await self._function(request.pop(), call)
        except asyncio.CancelledError:
            refusal = call.cancelled_by()
            if refusal is None:
                raise
            raise refusal from None
        finally:
            call.ends_s = math.inf
        serialized: bytes = reply if isinstance(reply, bytes) else reply.SerializeToString()
        call.replies(len(serialized), self._calls.max_stall_s)
        self._metrics.sent()
        return serialized
