"""Reflection for tools such as grpcurl: v1alpha from the library, and v1, the same by another name."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.errors import InvalidRequest, ServiceError
from service.rpc.gate import Identify, Rpc, abort

V1_NAME = "grpc.reflection.v1.ServerReflection"
V1ALPHA_NAME = reflection.SERVICE_NAME


def reflection_rpcs(service_names: Sequence[str]) -> dict[str, Rpc]:
    """Returns the rpcs of either version of the service. Where callers are told apart, it is for admins."""
    servicer = reflection.aio.ReflectionServicer((*service_names, V1_NAME, V1ALPHA_NAME))

    def build(identify: Identify) -> "grpc.RpcMethodHandler[Any, Any]":
        async def info(requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                identify(context)
            except ServiceError as error:
                await abort(context, error)
            try:
                async for reply in servicer.ServerReflectionInfo(requests, context):
                    yield reply
            except DecodeError:
                await abort(context, InvalidRequest("the bytes are no ServerReflectionRequest"))

        return grpc.stream_stream_rpc_method_handler(
            info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )

    return {"ServerReflectionInfo": Rpc(("admin",), build)}
