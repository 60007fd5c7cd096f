"""Reflection for tools such as grpcurl: v1alpha from the library, and v1, the same by another name."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from holdfast.errors import ServiceError
from service.engine.admission import Admission
from service.rpc.access import Access
from service.rpc.codec import parse
from service.rpc.gate import Identify, Rpc
from service.rpc.status import abort

V1_NAME = "grpc.reflection.v1.ServerReflection"
V1ALPHA_NAME = reflection.SERVICE_NAME


def reflection_rpcs(service_names: Sequence[str], access: Access, admission: Admission) -> dict[str, Rpc]:
    """Returns the rpcs of either version of the service. Where callers are told apart, it is for admins.

    Args:
        service_names: What can be asked about.
        access: Ends streams whose credential is revoked.
        admission: Bounds how many ask at a time, as it does all streams.
    """
    servicer = reflection.aio.ReflectionServicer((*service_names, V1_NAME, V1ALPHA_NAME))

    def build(identify: Identify) -> "grpc.RpcMethodHandler[Any, Any]":
        async def info(requests: Any, context: Any) -> None:
            try:
                caller = identify(context)
                with access.holding(caller), contextlib.closing(admission.open_stream(caller.tenant)):
                    async for reply in servicer.ServerReflectionInfo(requests, context):
                        await context.write(reply)
            except ServiceError as error:
                await abort(context, error)

        return grpc.stream_stream_rpc_method_handler(
            info,
            request_deserializer=functools.partial(parse, reflection_pb2.ServerReflectionRequest),
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )

    return {"ServerReflectionInfo": Rpc(("admin",), build)}
