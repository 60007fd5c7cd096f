"""Reflection for tools such as grpcurl: v1alpha from the library, and v1, the same by another name."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1_NAME = "grpc.reflection.v1.ServerReflection"
V1ALPHA_NAME = reflection.SERVICE_NAME


def add_reflection(server: Any, service_names: Sequence[str]) -> None:
    """Adds both versions of the service to a grpc.aio server."""
    servicer = reflection.aio.ReflectionServicer((*service_names, V1_NAME, V1ALPHA_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1_NAME, handlers),))
